"""The loops of fast.c as differentiable functions; they replace chains of tensor operations where nothing is rounded.

fast.c is compiled at the first use, by the C compiler that `CC` names, into the folder for temporary files. A training step takes
less than half the time with it. Tensors are f32 on the CPU.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch.autograd import Function

SOURCE = Path(__file__).with_name("fast.c")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
# Queries per block of attention: a block meets only the keys up to its last query.
CHUNK = 128


@cache
def library():
    """The compiled fast.c."""
    mark = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"demo-train-{mark}.so"
    if not path.exists():
        new = path.with_suffix(f".{os.getpid()}")
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, str(SOURCE), "-o", str(new), "-lm"], check=True)
        os.replace(new, path)
    return ctypes.CDLL(str(path))


def call(name, *args):
    """One C function; tensors go by address (None is null), whole numbers as int, others as float."""
    converted = []
    for a in args:
        if isinstance(a, torch.Tensor):
            converted.append(ctypes.c_void_p(a.data_ptr()))
        elif a is None:
            converted.append(None)
        else:
            converted.append(ctypes.c_int(a) if isinstance(a, int) else ctypes.c_float(a))
    getattr(library(), name)(*converted)


class Gate(Function):
    """fn h, h [N, n, D] -> collapsed [N, D], post [N, n], mix [N, n, n]."""

    @staticmethod
    def forward(ctx, raw, h, scale, base, iters, eps, rms_eps):
        rows, n, width = h.shape
        x, post, mix = h.new_empty(rows, width), h.new_empty(rows, n), h.new_empty(rows, n, n)
        ctx.sizes = (rows, width, iters, eps, rms_eps)
        ctx.save_for_backward(raw, h, scale, base)
        call("hc_gate", *ctx.sizes, raw, h, scale, base, x, post, mix)
        return x, post, mix

    @staticmethod
    def backward(ctx, gx, gpost, gmix):
        saved = ctx.saved_tensors
        graw, gh = torch.empty_like(saved[0]), torch.empty_like(saved[1])
        gscale, gbase = torch.zeros_like(saved[2]), torch.zeros_like(saved[3])
        grads = [g.contiguous() for g in (gx, gpost, gmix)]
        call("hc_gate_back", *ctx.sizes, *saved, *grads, graw, gh, gscale, gbase)
        return graw, gh, gscale, gbase, None, None, None


class Expand(Function):
    """y [N, D], h [N, n, D], post, mix -> new streams [N, n, D]."""

    @staticmethod
    def forward(ctx, y, h, post, mix):
        y, out = y.contiguous(), torch.empty_like(h)
        ctx.save_for_backward(y, h, post, mix)
        call("hc_expand", *y.shape, y, h, post, mix, out)
        return out

    @staticmethod
    def backward(ctx, g):
        saved = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in saved]
        call("hc_expand_back", *saved[0].shape, *saved, g.contiguous(), *grads)
        return tuple(grads)


class RmsRope(Function):
    """x [B, T, (heads,) d]: norm, if `norm`, with weight w or None; then rotation, backwards if `direction` is -1."""

    @staticmethod
    def forward(ctx, x, w, cos, sin, norm, direction, eps=1e-6):
        x, y = x.contiguous(), torch.empty(x.shape)
        cos, sin = cos[: x.shape[1]].contiguous(), sin[: x.shape[1]].contiguous()
        heads, width = (x.shape[2] if x.dim() == 4 else 1), x.shape[-1]
        rows = x.numel() // width
        ctx.sizes = (rows, width, 2 * cos.shape[1], heads, x.shape[1], int(norm), float(direction), eps)
        ctx.save_for_backward(x, w, cos, sin)
        call("rms_rope", *ctx.sizes, x, w, cos, sin, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, w, cos, sin = ctx.saved_tensors
        gx, gw = torch.empty_like(x), None if w is None else torch.zeros_like(w)
        call("rms_rope_back", *ctx.sizes, x, w, cos, sin, g.contiguous(), gx, gw)
        return gx, gw, None, None, None, None, None


class Attend(Function):
    """q [B, T, H, d], keys [B, T, d], entries [B, W, d] or None, sink [H] -> [B, T, H, d].

    Every entry that is complete is seen; `window` is the number of keys that a query sees.
    """

    @staticmethod
    def blocks(length, window, ratio):
        """(first query, end, oldest key, entries) of each block."""
        for start in range(0, length, CHUNK):
            end = min(start + CHUNK, length)
            yield start, end, max(0, start + 1 - window), end // ratio if ratio else 0

    @staticmethod
    def forward(ctx, q, keys, entries, sink, window, ratio):
        batch, length, heads, width = q.shape
        q, out, saved = q.contiguous(), torch.empty(q.shape), []
        ctx.sizes = (window, ratio)
        for start, end, oldest, count in Attend.blocks(length, window, ratio):
            kv = keys[:, oldest:end]
            if count:
                kv = torch.cat((kv, entries[:, :count]), 1)
            weights = torch.bmm(q[:, start:end].flatten(1, 2), kv.mT)
            sizes = (batch, end - start, heads, kv.shape[1], end - oldest, start, oldest, window, ratio)
            call("attend", *sizes, width**-0.5, sink, weights)
            out[:, start:end] = torch.bmm(weights, kv).unflatten(1, (-1, heads))
            saved.append(weights)
        ctx.save_for_backward(q, keys, entries, sink, *saved)
        return out

    @staticmethod
    def backward(ctx, g):
        q, keys, entries, sink, *saved = ctx.saved_tensors
        batch, length, heads, width = q.shape
        gq, gkeys, gsink = torch.empty_like(q), torch.zeros(keys.shape), torch.zeros_like(sink)
        gentries = None if entries is None else torch.zeros(entries.shape)
        for (start, end, oldest, count), weights in zip(Attend.blocks(length, *ctx.sizes), saved):
            kv = keys[:, oldest:end]
            if count:
                kv = torch.cat((kv, entries[:, :count]), 1)
            gout = g[:, start:end].flatten(1, 2)
            glogits = torch.bmm(gout, kv.mT)
            call("attend_back", batch, end - start, heads, kv.shape[1], width**-0.5, weights, glogits, gsink)
            gq[:, start:end] = torch.bmm(glogits, kv).unflatten(1, (-1, heads))
            gkv = torch.bmm(glogits.mT, q[:, start:end].flatten(1, 2)).baddbmm_(weights.mT, gout)
            gkeys[:, oldest:end] += gkv[:, : end - oldest]
            if count:
                gentries[:, :count] += gkv[:, end - oldest :]
        return gq, gkeys, gentries, gsink, None, None


class SwiGlu(Function):
    """Clamped SwiGLU of gate and up side by side [N, 2 I], times weight [N, 1] or None -> [N, I]."""

    @staticmethod
    def forward(ctx, both, weight, limit):
        inner = both.new_empty(both.shape[0], both.shape[1] // 2)
        weight = None if weight is None else weight.contiguous()
        ctx.sizes = (*inner.shape, limit)
        ctx.save_for_backward(both, weight)
        call("swiglu", *ctx.sizes, both, weight, inner)
        return inner

    @staticmethod
    def backward(ctx, g):
        both, weight = ctx.saved_tensors
        gboth, gweight = torch.empty_like(both), None if weight is None else torch.empty_like(weight)
        call("swiglu_back", *ctx.sizes, both, weight, g.contiguous(), gboth, gweight)
        return gboth, gweight, None
