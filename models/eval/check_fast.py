"""Compares the fused loops of training (train/fast.c) with the tensor operations they replace: loss and every gradient.

    python models/eval/check_fast.py

A random model of each kind, random tokens; windows longer and shorter than the row. Exits non-zero if they differ.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))

from model import Model  # noqa: E402
from recipes import RECIPES  # noqa: E402
from train import loss_of  # noqa: E402

# Not a multiple of a compressed block, nor of fast.CHUNK.
LENGTH = 327
WINDOWS = (50, 1024)
# Of a gradient's norm; attention sinks have small gradients that are sums of large ones.
TOLERANCE = 2e-3


def gradients(config, fast):
    """(loss, gradients by name) of one step, with or without the fused loops."""
    torch.manual_seed(0)
    model = Model(config)
    model.num.fast = fast
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(("attn_sink", "base", "ape")):
                param.add_(torch.randn_like(param))
    ids = torch.randint(config["vocab_size"], (2, LENGTH))
    positions = torch.arange(0, 2 * LENGTH - 1, 3)
    loss, _ = loss_of(model, ids, positions, ids.flatten()[positions + 1])
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def main():
    worst = 0.0
    for name, recipe in RECIPES.items():
        for window in WINDOWS:
            config = {**recipe.config, "sliding_window": window}
            (loss, plain), (fast_loss, fused) = gradients(config, False), gradients(config, True)
            assert plain.keys() == fused.keys(), plain.keys() ^ fused.keys()
            error, param = max(((fused[p] - g).norm().item() / (g.norm().item() + 1e-9), p) for p, g in plain.items())
            print(f"demo-{name}, window {window}: loss {loss:.6f} and {fast_loss:.6f}, gradients within {error:.1e} ({param})")
            worst = max(worst, error, abs(loss - fast_loss) / loss)
    sys.exit(0 if worst < TOLERANCE else 1)


if __name__ == "__main__":
    main()
