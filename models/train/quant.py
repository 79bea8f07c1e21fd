"""Block formats of the released V4 checkpoints, as plain tensor arithmetic.

Every scale is a power of two (ue8m0). `*_quant` functions return exact grid values and scales,
`*_sim` functions return the value that survives the round trip, `ste` makes one differentiable.
"""

import torch

E4M3_MAX = 448.0
E2M1_MAX = 6.0
FP8_TILE = 128
FP4_BLOCK = 32
# ue8m0 has no zero: an all-zero block gets the scale of this amax.
WEIGHT_AMAX_MIN = 2.0**-40
ACT_AMAX_MIN = 1e-4


def pow2_ceil(x):
    """2**ceil(log2(x)) for positive normal f32, on the bit pattern: bump the exponent if any mantissa bit is set."""
    return ((x.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def round_e4m3(y):
    """Nearest-even onto e4m3 for |y| <= 448; the step is an eighth of the binade, at least 2**-9."""
    binade = (y.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
    step = binade.clamp_min(2.0**-6) * 0.125
    return torch.round(y / step) * step


def round_e2m1(y):
    """Nearest-even onto {0, .5, 1, 1.5, 2, 3, 4, 6} for |y| <= 6, sign kept."""
    a = y.abs()
    step = torch.where(a <= 2, 0.5, torch.where(a <= 4, 1.0, 2.0))
    return torch.copysign(torch.round(a / step) * step, y)


def fp8_act_sim(x, block):
    """Dynamic e4m3 round trip per `block` channels of the last dimension."""
    xb = x.unflatten(-1, (-1, block))
    amax = xb.abs().amax(-1, keepdim=True).clamp_min(ACT_AMAX_MIN)
    scale = pow2_ceil(amax * (1.0 / E4M3_MAX))
    return (round_e4m3((xb / scale).clamp(-E4M3_MAX, E4M3_MAX)) * scale).flatten(-2)


def fp4_act_sim(x, block=FP4_BLOCK):
    """Dynamic e2m1 round trip per `block` channels of the last dimension (indexer queries and keys)."""
    xb = x.unflatten(-1, (-1, block))
    amax = xb.abs().amax(-1, keepdim=True).clamp_min(6 * 2.0**-126)
    scale = pow2_ceil(amax * (1.0 / E2M1_MAX))
    return (round_e2m1((xb / scale).clamp(-E2M1_MAX, E2M1_MAX)) * scale).flatten(-2)


def fp8_weight_quant(w):
    """w [out, in] -> (grid values [out, in], scale [ceil(out/128), ceil(in/128)])."""
    rows, cols = w.shape
    pad = (0, -cols % FP8_TILE, 0, -rows % FP8_TILE)
    tiles = torch.nn.functional.pad(w, pad).unflatten(1, (-1, FP8_TILE)).unflatten(0, (-1, FP8_TILE))
    amax = tiles.abs().amax((1, 3), keepdim=True).clamp_min(WEIGHT_AMAX_MIN)
    scale = pow2_ceil(amax * (1.0 / E4M3_MAX))
    grid = round_e4m3((tiles / scale).clamp(-E4M3_MAX, E4M3_MAX))
    return grid.flatten(2).flatten(0, 1)[:rows, :cols], scale[:, 0, :, 0]


def fp8_weight_sim(w):
    """Value of an FP8 weight [out, in] after the round trip."""
    grid, scale = fp8_weight_quant(w)
    full = scale.repeat_interleave(FP8_TILE, 0).repeat_interleave(FP8_TILE, 1)
    return grid * full[: w.shape[0], : w.shape[1]]


def fp4_weight_quant(w):
    """w [..., in] -> (grid values [..., in], scale [..., in/32])."""
    blocks = w.unflatten(-1, (-1, FP4_BLOCK))
    amax = blocks.abs().amax(-1, keepdim=True).clamp_min(WEIGHT_AMAX_MIN)
    scale = pow2_ceil(amax * (1.0 / E2M1_MAX))
    grid = round_e2m1((blocks / scale).clamp(-E2M1_MAX, E2M1_MAX))
    return grid.flatten(-2), scale[..., 0]


def fp4_weight_sim(w):
    """Value of an FP4 weight [..., in] after the round trip."""
    grid, scale = fp4_weight_quant(w)
    return grid * scale.repeat_interleave(FP4_BLOCK, -1)


def bf16_sim(x):
    """Value after rounding to bf16."""
    return x.to(torch.bfloat16).to(torch.float32)


WEIGHT_SIM = {
    "fp4": fp4_weight_sim,
    "fp8": fp8_weight_sim,
    "bf16": bf16_sim,
    "f32": lambda w: w,
    # wo_a is stored as FP8 but used as bf16.
    "fp8_bf16": lambda w: bf16_sim(fp8_weight_sim(w)),
}


def ste(x, fn, *args):
    """fn(x) forward, identity backward. Without gradients the result is exactly fn(x)."""
    if not torch.is_grad_enabled():
        return fn(x, *args)
    return x + (fn(x.detach(), *args) - x.detach())


def hadamard(x):
    """Orthonormal Sylvester-ordered Walsh-Hadamard transform of the last dimension."""
    n = x.shape[-1]
    half = 1
    while half < n:
        pairs = x.unflatten(-1, (n // (2 * half), 2, half))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((a + b, a - b), -2).flatten(-3)
        half *= 2
    return x * n**-0.5
