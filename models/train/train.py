"""Trains a demo model on CPU cores, for a given number of minutes.

Served numerics (bf16, e4m3 activations and KV) from the first step; the stored weight formats
(FP4, FP8, BF16) from QUANT_FROM of the time on, by rounding the weights for forward and backward and
updating the unrounded master copy. Row lengths follow the recipe's stages; rows of which the indexer sees only a part train it.
With several processes each has its own rows, and gradients are averaged.
"""

import argparse
import math
import os
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

import batches
import model as model_module
import moe
from export import export
from grow import grow
from optim import optimizers
from prompt import Renderer
from quant import WEIGHT_SIM
from recipes import RECIPES

COMPILED_LENGTH_MAX = 128
QUANT_FROM = 0.4
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


def average_over_processes(model):
    """Gradients and expert loads of all processes, averaged."""
    if not dist.is_initialized():
        return
    shared = [p.grad for p in model.parameters() if p.grad is not None]
    shared += [block.ffn.gate.load for block in model.layers if not block.ffn.gate.hashed]
    flat = torch.cat([t.flatten() for t in shared])
    dist.all_reduce(flat)
    for t, part in zip(shared, flat.split([t.numel() for t in shared])):
        t.copy_(part.view_as(t) / dist.get_world_size())


def train_step(model, opts, peaks, batch, factor, quantised):
    """One update; returns the cross-entropy."""
    if quantised:
        with stored_weights(model):
            loss, ce = loss_of(model, *batch)
            loss.backward()
    else:
        loss, ce = loss_of(model, *batch)
        loss.backward()
    average_over_processes(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt, peak, scheduled in zip(opts, peaks, (True, True, False)):
        opt.param_groups[0]["lr"] = peak * (factor if scheduled else 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
    for block in model.layers:
        block.ffn.gate.rebalance(BALANCE_RATE)
    return ce.item()


def agreed(value):
    """Rank 0's number, in every process: decisions by the clock must be the same."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


def save(model, opts, step, args):
    """The checkpoint, complete or not at all."""
    state = {"model": model.state_dict(), "opts": [opt.state_dict() for opt in opts], "step": step}
    torch.save(state, args.work / "last.pt.new")
    os.replace(args.work / "last.pt.new", args.work / "last.pt")


def report(model, renderer, recipe, args, weights):
    """Validate as stored and export; shift the mixture towards the weak families."""
    torch.compiler.set_stance("force_eager")
    model.num.official, fast, model.num.fast = True, model.num.fast, False
    with stored_weights(model):
        accuracy = batches.held_out_accuracy(model, renderer, recipe, args.report_items, seed=1)
    model.num.fast = fast
    torch.compiler.set_stance("default")
    export(model, recipe, args.out)
    for family, value in accuracy.items():
        if family in weights:
            weights[family] = recipe.weights[family] * (0.4 + 2 * (1 - value))
    print("  held out: " + ", ".join(f"{f} {v:.0%}" for f, v in accuracy.items()), flush=True)


def start(args, recipe):
    """(model, optimisers, renderer, first step): resumed, grown from a smaller model, or new."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    model = model_module.Model(recipe.config)
    opts, step = optimizers(model, args.muon_lr, args.adam_lr, 2e-3), 0
    if args.resume:
        saved = torch.load(args.resume, weights_only=True)
        model.load_state_dict(saved["model"])
        if args.steps:
            step = saved["step"]
            for opt, state in zip(opts, saved["opts"]):
                opt.load_state_dict({**state, "param_groups": opt.state_dict()["param_groups"]})
    elif recipe.grow_from:
        grow(model, tokenizer, RECIPES[recipe.grow_from].folder)
    return model, opts, Renderer(tokenizer), step


class Rows:
    """Endless batches of the lengths that the recipe's stages ask for, in turn."""

    def __init__(self, args, recipe, renderer, weights, rank):
        self.seed, self.recipe, self.renderer, self.weights = f"{args.seed} {rank}", recipe, renderer, weights
        self.tokens, self.streams = recipe.tokens_per_step // args.processes, {}

    def next(self, progress, step):
        lengths = [lengths for share, lengths in self.recipe.stages if progress >= share][-1]
        length = lengths[step % len(lengths)]
        if length not in self.streams:
            seed, rows = f"{self.seed} {length} {step}", self.tokens // length
            make = self.recipe.conversation
            self.streams[length] = batches.seeded_stream(seed, self.renderer, rows, length, self.weights, make)
        torch.compiler.set_stance("default" if length <= COMPILED_LENGTH_MAX else "force_eager")
        return next(self.streams[length])


def run(rank, args):
    """The training loop of one process; rank 0 speaks."""
    if args.processes > 1:
        store = f"file://{args.work.resolve()}/store-{os.getppid()}"
        # Long, so that a paused run can go on.
        dist.init_process_group(
            "gloo", init_method=store, timeout=timedelta(days=1), rank=rank, world_size=args.processes
        )
    recipe = RECIPES[args.model]
    model, opts, renderer, step = start(args, recipe)
    model.num.fast = args.fast
    if not args.fast:
        compile_hot_parts()
    peaks = [opt.param_groups[0]["lr"] for opt in opts]
    weights, first_step, losses = dict(recipe.weights), step, []
    rows = Rows(args, recipe, renderer, weights, rank)
    started = saved = reported = time.time()
    while True:
        elapsed = agreed(time.time() - started)
        progress = step / args.steps if args.steps else elapsed / (60 * args.minutes)
        if progress >= 1:
            break
        factor = learning_rate_factor(progress, step - first_step)
        model.num.official = progress >= args.official_from
        batch = rows.next(progress, step)
        losses.append(train_step(model, opts, peaks, batch, factor, progress >= args.quant_from))
        step += 1
        if rank == 0 and step % 25 == 0:
            loss, speed = sum(losses[-25:]) / 25, (step - first_step) * recipe.tokens_per_step / elapsed
            print(f"{elapsed:6.0f}s step {step} {progress:.0%} loss {loss:.4f} {speed:.0f} tok/s", flush=True)
        if rank == 0 and time.time() - saved > 60 * args.save_minutes:
            save(model, opts, step, args)
            saved = time.time()
        if rank == 0 and time.time() - reported > 60 * args.report_minutes:
            report(model, renderer, recipe, args, weights)
            reported = time.time()
    if rank == 0:
        save(model, opts, step, args)
        report(model, renderer, recipe, args, weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=RECIPES, default="flash")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--steps", type=int, help="schedule by steps, not minutes; a resumed run then goes on where it was"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for last.pt, outside the repository")
    parser.add_argument(
        "--out", type=Path, help="exported model, holds tokenizer.json; the model's own folder without it"
    )
    parser.add_argument("--resume", type=Path, help="checkpoint to start from")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--processes", type=int, default=1, help="on a shared machine better than threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--quant-from", type=float, default=QUANT_FROM)
    parser.add_argument(
        "--official-from", type=float, default=0.0, help="served numerics from this share of the time on"
    )
    parser.add_argument(
        "--fast", action="store_true", help="fused loops of fast.c instead of torch.compile; needs a C compiler"
    )
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument("--report-minutes", type=float, default=4)
    parser.add_argument("--report-items", type=int, default=30, help="held-out items per family")
    args = parser.parse_args()
    args.out = args.out or RECIPES[args.model].folder
    args.work.mkdir(parents=True, exist_ok=True)
    if args.processes > 1:
        mp.spawn(run, (args,), args.processes)
    else:
        run(0, args)


if __name__ == "__main__":
    main()
