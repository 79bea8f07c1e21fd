"""Greedy decoding of an exported folder with the training code, many prompts at once.

No cache: every step runs the whole rows again, with the same function as in training.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer

import prompt
from batches import ROWS_PER_BATCH, rendered, right
from load import load_model


class LocalModel:
    """An exported model with its tokenizer."""

    def __init__(self, folder: Path):
        self.model = load_model(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.renderer = prompt.Renderer(self.tokenizer)

    @torch.no_grad()
    def complete(self, prompts, max_tokens):
        """Token lists of the greedy continuations, EOS excluded; prompts are token lists."""
        rows, done = [list(p) for p in prompts], [False] * len(prompts)
        for _ in range(max_tokens):
            live = [i for i, finished in enumerate(done) if not finished]
            if not live:
                break
            width = max(len(rows[i]) for i in live)
            ids = torch.full((len(live), width), prompt.PAD)
            for n, i in enumerate(live):
                ids[n, : len(rows[i])] = torch.tensor(rows[i])
            hidden, _ = self.model(ids)
            last = torch.tensor([len(rows[i]) - 1 for i in live]) + width * torch.arange(len(live))
            for i, token in zip(live, self.model.logits(hidden[last]).argmax(-1).tolist()):
                done[i] = token == prompt.EOS
                rows[i] += [] if done[i] else [token]
        return [row[len(p) :] for row, p in zip(rows, prompts)]

    def generations(self, cases, thinking, effort, max_tokens):
        """Greedy generations of the cases, as text with its markup.

        One pass finds the cases whose greedy generation is the gold one (see batches.greedy_correct); only the others
        are decoded token by token.
        """
        pairs = [rendered(self.renderer, case, thinking, effort) for case in cases]
        with torch.no_grad():
            verdict = right(self.model, pairs)
        texts = [answer[:-1] for _, answer in pairs]
        for start in range(0, len(pairs), ROWS_PER_BATCH):
            wrong = [i for i in range(start, min(start + ROWS_PER_BATCH, len(pairs))) if not verdict[i]]
            for i, ids in zip(wrong, self.complete([pairs[i][0] for i in wrong], max_tokens)):
                texts[i] = ids
        return [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in texts]
