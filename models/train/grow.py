"""Starts a model from an exported smaller one: same width, more layers, another vocabulary.

Tokens are matched by their text; a new token starts as the mean of the pieces that stood for it. A new layer starts as
the identity: its sublayers write nothing and its hyper-connections hardly mix, so the grown model says what the old one said.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from load import load_model

# Diagonal of a new layer's stream-mixing logits, close to the identity after Sinkhorn.
IDENTITY_LOGIT = 6.0


def pieces_of(old, new):
    """For each new token id, the old ids of its text."""
    vocab, decoder = old.get_vocab(), new.decoder
    pieces = [None] * new.get_vocab_size()
    for token, i in new.get_vocab().items():
        same = vocab.get(token)
        text = "" if same is not None else decoder.decode([token])
        pieces[i] = [same] if same is not None else old.encode(text, add_special_tokens=False).ids
    return pieces


def rows_of(weight, pieces):
    """Mean of the old rows that stood for each new token."""
    return torch.stack([weight[ids].mean(0) for ids in pieces])


@torch.no_grad()
def make_identity(block):
    """Let a fresh layer pass its streams on unchanged."""
    block.attn.wo_b.weight.zero_()
    block.ffn.experts.w2.zero_()
    block.ffn.shared_experts.w2.weight.zero_()
    for hc in (block.hc_attn, block.hc_ffn):
        n = hc.n
        hc.fn[2 * n :] = 0.0
        hc.base[2 * n :] = IDENTITY_LOGIT * torch.eye(n).flatten()


@torch.no_grad()
def grow(model, tokenizer, folder: Path):
    """Fill `model` from the exported model in `folder`; its first layers are the old ones."""
    old, old_tokenizer = load_model(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = pieces_of(old_tokenizer, tokenizer)
    state, kept = model.state_dict(), old.state_dict()
    for name, value in kept.items():
        if name in ("embed.weight", "head.weight"):
            value = rows_of(value, pieces)
        elif name.endswith("tid2eid"):
            value = value[[ids[0] for ids in pieces]]
        state[name] = value
    model.load_state_dict(state)
    for block in list(model.layers)[len(old.layers) :]:
        make_identity(block)
