"""Trains demo-flash on two CPU cores, for a given number of minutes.

Served numerics (bf16, e4m3 activations and KV) from the first step; the stored weight formats
(FP4, FP8, BF16) from QUANT_FROM of the time on, by rounding the weights for forward and backward and
updating the unrounded master copy. Row lengths grow by STAGES; the last stage trains the indexer.
"""

import argparse
import math
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import batches
import data
import model as model_module
import moe
from config import CONFIG
from export import export
from optim import optimizers
from prompt import Renderer
from quant import WEIGHT_SIM

# (share of the time at which it starts, row length)
STAGES = [(0.0, 128), (0.8, 256), (0.95, 512)]
COMPILED_LENGTH_MAX = 128
QUANT_FROM = 0.4
TOKENS_PER_STEP = 4096
WARMUP_STEPS = 40
BALANCE_RATE = 1e-3
INDEX_LOSS_WEIGHT = 0.1


def compile_hot_parts():
    """Compile the parts with fixed shapes; routing stays eager."""
    torch._dynamo.config.recompile_limit = 64
    block = model_module.Block
    block.attention = torch.compile(block.attention, dynamic=False)
    block.ffn_input = torch.compile(block.ffn_input, dynamic=False)
    model_module.expand = torch.compile(model_module.expand, dynamic=False)
    moe.swiglu = torch.compile(moe.swiglu, dynamic=True)


@contextmanager
def stored_weights(model):
    """Inside, every parameter has the value that its checkpoint format can hold."""
    masters = [(p, p.data) for p in model.parameters()]
    for p, master in masters:
        p.data = WEIGHT_SIM[getattr(p, "fmt", "f32")](master)
    yield
    for p, master in masters:
        p.data = master


def learning_rate_factor(progress, step):
    """Linear warm-up, flat, then cosine to 2 %."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    decay = max(0.0, (progress - 0.3) / 0.7)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * decay)))


def loss_of(model, ids, positions, targets):
    """Mean cross-entropy of the answer tokens, plus the indexer's own loss."""
    hidden, index_loss = model(ids)
    loss = F.cross_entropy(model.logits(hidden[positions]), targets)
    return loss + INDEX_LOSS_WEIGHT * index_loss, loss.detach()


def train_step(model, opts, peaks, batch, factor, quantised):
    """One update; returns the cross-entropy."""
    if quantised:
        with stored_weights(model):
            loss, ce = loss_of(model, *batch)
            loss.backward()
    else:
        loss, ce = loss_of(model, *batch)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt, peak, scheduled in zip(opts, peaks, (True, True, False)):
        opt.param_groups[0]["lr"] = peak * (factor if scheduled else 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
    for block in model.layers:
        block.ffn.gate.rebalance(BALANCE_RATE)
    return ce.item()


def report(model, renderer, count, args, weights):
    """Validate as stored, save and export; shift the mixture towards the weak families."""
    torch.compiler.set_stance("force_eager")
    with stored_weights(model):
        accuracy, _ = batches.held_out_accuracy(model, renderer, count, seed=1)
    torch.compiler.set_stance("default")
    torch.save({"model": model.state_dict()}, args.work / "last.pt")
    export(model, args.out)
    for family, value in accuracy.items():
        weights[family] = data.WEIGHTS[family] * (0.4 + 2 * (1 - value))
    print("  held out: " + ", ".join(f"{f} {v:.0%}" for f, v in accuracy.items()), flush=True)


def run(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = model_module.Model(CONFIG)
    model.num.official = True
    if args.resume:
        model.load_state_dict(torch.load(args.resume, weights_only=True)["model"])
    renderer = Renderer(Tokenizer.from_file(str(args.out / "tokenizer.json")))
    compile_hot_parts()
    opts = optimizers(model, args.muon_lr, args.adam_lr, 2e-3)
    peaks = [opt.param_groups[0]["lr"] for opt in opts]
    weights, step, tokens, losses = dict(data.WEIGHTS), 0, 0, []
    start, last_report, length, stream = time.time(), time.time(), None, None
    while (progress := (time.time() - start) / (60 * args.minutes)) < 1:
        stage_length = [n for share, n in STAGES if progress >= share][-1]
        if stage_length != length:
            length = stage_length
            stream = batches.seeded_stream(
                f"{args.seed} {length} {step}", renderer, TOKENS_PER_STEP // length, length, weights
            )
            torch.compiler.set_stance("default" if length <= COMPILED_LENGTH_MAX else "force_eager")
        factor = learning_rate_factor(progress, step)
        losses.append(train_step(model, opts, peaks, next(stream), factor, progress >= args.quant_from))
        step, tokens = step + 1, tokens + TOKENS_PER_STEP
        if step % 25 == 0:
            elapsed = time.time() - start
            loss, speed = sum(losses[-25:]) / 25, tokens / elapsed
            print(f"{elapsed:6.0f}s step {step} rows of {length} loss {loss:.4f} {speed:.0f} tok/s", flush=True)
        if time.time() - last_report > 60 * args.report_minutes:
            report(model, renderer, 30, args, weights)
            last_report = time.time()
            torch.compiler.set_stance("default" if length <= COMPILED_LENGTH_MAX else "force_eager")
    report(model, renderer, 30, args, weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--work", type=Path, required=True, help="folder for last.pt, outside the repository")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[1] / "demo-flash",
        help="exported model; holds tokenizer.json",
    )
    parser.add_argument("--resume", type=Path, help="checkpoint to start from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--quant-from", type=float, default=QUANT_FROM)
    parser.add_argument("--report-minutes", type=float, default=4)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    run(args)


if __name__ == "__main__":
    main()
