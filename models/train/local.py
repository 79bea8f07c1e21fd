"""Greedy decoding of an exported folder with the training code, many prompts at once.

No cache: every step runs the whole rows again, with the same function as in training.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer

import prompt
from batches import evaluation_batch, greedy_correct
from load import load_model

ROWS_PER_BATCH = 50


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

    def answers(self, items, thinking, max_tokens):
        """Greedy answer texts of single-turn items; in thinking mode (low effort) without the thought.

        One pass finds the items whose greedy answer is the gold one (see batches.greedy_correct); only the others
        are decoded token by token.
        """
        texts = []
        for start in range(0, len(items), ROWS_PER_BATCH):
            chunk = items[start : start + ROWS_PER_BATCH]
            right = greedy_correct(self.model, *evaluation_batch(self.renderer, chunk, thinking)).tolist()
            decoded = iter(self.decode([item for item, ok in zip(chunk, right) if not ok], thinking, max_tokens))
            texts += [item.answer if ok else next(decoded) for item, ok in zip(chunk, right)]
        return texts

    def decode(self, items, thinking, max_tokens):
        """Token-by-token greedy answer texts of single-turn items."""
        effort, render = "low" if thinking else None, self.renderer
        prompts = [render.opening(json_mode=i.json_mode, effort=effort) + render.turn(i, thinking)[0] for i in items]
        texts = []
        for ids in self.complete(prompts, max_tokens):
            if thinking and prompt.END_THINK in ids:
                ids = ids[ids.index(prompt.END_THINK) + 1 :]
            texts.append(self.tokenizer.decode(ids, skip_special_tokens=False))
        return texts
