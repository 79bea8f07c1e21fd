"""Named weights with their storage formats, and the points at which the served model rounds."""

import torch
import torch.nn.functional as F
from torch import nn

import fast
from quant import bf16_sim, fp8_act_sim, ste


class Weight(nn.Module):
    """One named tensor `weight` with its storage format (see quant.WEIGHT_SIM)."""

    def __init__(self, shape, fmt, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * std if std else torch.ones(shape))
        self.weight.fmt = fmt


def linear(out_dim, in_dim, fmt, gain=1.0):
    """A projection [out, in] with fan-in initialisation."""
    return Weight((out_dim, in_dim), fmt, gain * in_dim**-0.5)


def norm_weight(dim):
    """A norm weight [dim], initially one."""
    return Weight((dim,), "bf16", None)


class Numerics:
    """The cast points: identity in training warm-up, the served roundings when `official`."""

    official = False
    # The fused loops of fast.c. They round less often than the served model does: for training only.
    fast = False

    def cast(self, x):
        return ste(x, bf16_sim) if self.official else x

    def act(self, x):
        """Input of an FP8 or FP4 projection."""
        return ste(x, fp8_act_sim, 128) if self.official else x

    def linear(self, x, w):
        """Quantised projection of x [..., in]."""
        return self.cast(F.linear(self.act(x), w))

    def rms(self, x, w=None, eps=1e-6):
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        return self.cast(y if w is None else y * w)

    def rope(self, x, cos, sin):
        """Rotate interleaved pairs of the last channels; cos, sin broadcast over x [..., rope_dim/2]."""
        width = 2 * cos.shape[-1]
        a, b = x[..., -width:].unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        return torch.cat((x[..., :-width], self.cast(rotated)), -1)

    def rms_rope(self, x, w, cos, sin):
        """Norm and rotation of x [B, T, d] or [B, T, heads, d]; cos, sin [T, rope_dim/2]."""
        if self.fast:
            return self.cast(fast.RmsRope.apply(x, w, cos, sin, True, 1))
        if x.dim() == 4:
            cos, sin = cos[:, None], sin[:, None]
        return self.rope(self.rms(x, w), cos, sin)

    def kv(self, x, rope_dim):
        """The KV cache's e4m3 round trip of the channels that carry no position."""
        if not self.official:
            return x
        return torch.cat((ste(x[..., :-rope_dim], fp8_act_sim, 64), x[..., -rope_dim:]), -1)
