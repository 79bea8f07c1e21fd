"""The V4 architecture for training, whole sequences at a time.

Parameter names are the checkpoint's, except that a layer's routed experts are stacked:
`layers.N.ffn.experts.w1` [E, I, D]. With `official=True` the forward pass reproduces the served
numerics: bf16 at every cast point, e4m3 activations and KV, Hadamard + fp4 in the indexer.
Shapes in brackets: B sequences, T tokens, N = B*T, D hidden, n streams, H heads, d head_dim.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

import fast
from moe import Moe
from numerics import Numerics, Weight, linear, norm_weight
from quant import fp4_act_sim, hadamard, ste

MASKED = -1e30


def rope_table(cfg, compressed, length):
    """cos, sin [length, rope_dim/2] of one layer kind; YaRN, without mscale, only for compressed layers."""
    dim = cfg["qk_rope_head_dim"]
    base = cfg["compress_rope_theta"] if compressed else cfg["rope_theta"]
    freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    if compressed:
        yarn = cfg["rope_scaling"]
        orig = yarn["original_max_position_embeddings"]

        def dim_of(rotations):
            return dim * math.log(orig / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low, high = math.floor(dim_of(yarn["beta_fast"])), math.ceil(dim_of(yarn["beta_slow"]))
        ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        freq = freq / yarn["factor"] * ramp + freq * (1 - ramp)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * freq
    return angle.cos(), angle.sin()


class HyperConnection(nn.Module):
    """mHC coefficients of one sublayer."""

    def __init__(self, cfg, stream):
        super().__init__()
        n, width = cfg["hc_mult"], cfg["hc_mult"] * cfg["hidden_size"]
        self.n, self.iters, self.eps = n, cfg["hc_sinkhorn_iters"], cfg["hc_eps"]
        self.rms_eps = cfg["rms_norm_eps"]
        self.fn = nn.Parameter(torch.randn(n * (n + 2), width) * 0.3 * width**-0.5)
        base = torch.zeros(n * (n + 2))
        base[:n] = -1.0
        base[stream] = 1.0
        base[2 * n :] = 3.0 * torch.eye(n).flatten()
        self.base = nn.Parameter(base)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, num, h):
        """h [N, n, D] -> collapsed [N, D], post [N, n], mix [N, n, n] (row = source stream)."""
        n, eps = self.n, self.eps
        flat = h.flatten(-2)
        raw = F.linear(flat, self.fn)
        if num.fast:
            x, post, mix = fast.Gate.apply(raw, h, self.scale, self.base, self.iters, eps, self.rms_eps)
            return num.cast(x), post, mix
        m = raw * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.rms_eps)
        pre = torch.sigmoid(m[:, :n] * self.scale[0] + self.base[:n]) + eps
        post = 2 * torch.sigmoid(m[:, n : 2 * n] * self.scale[1] + self.base[n : 2 * n])
        mix = (m[:, 2 * n :] * self.scale[2] + self.base[2 * n :]).unflatten(-1, (n, n)).softmax(-1) + eps
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
        for _ in range(self.iters - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + eps)
            mix = mix / (mix.sum(-2, keepdim=True) + eps)
        return collapse(num, h, pre), post, mix


def collapse(num, h, pre):
    """h [N, n, D], pre [N, n] -> [N, D]."""
    return num.cast((pre.unsqueeze(-1) * h).sum(1))


def expand(num, y, h, post, mix):
    """New streams: post[k]*y + sum_j mix[j, k]*h[j]; returns [N, n, D]."""
    if num.fast:
        return num.cast(fast.Expand.apply(y, h, post, mix))
    out = post.unsqueeze(-1) * y.unsqueeze(1)
    for j in range(h.shape[1]):
        out = out + mix[:, j, :, None] * h[:, j, None, :]
    return num.cast(out)


class Compressor(nn.Module):
    """Pools blocks of `ratio` tokens into one entry."""

    def __init__(self, cfg, ratio, dim):
        super().__init__()
        self.ratio, self.dim, self.overlap = ratio, dim, ratio == 4
        width = 2 * dim if self.overlap else dim
        self.ape = nn.Parameter(torch.zeros(ratio, width))
        self.norm = norm_weight(dim)
        self.wkv = linear(width, cfg["hidden_size"], "bf16")
        self.wgate = linear(width, cfg["hidden_size"], "bf16", 0.3)

    def forward(self, num, x, cos, sin):
        """x [B, T, D] -> rotated entries [B, T // ratio, dim], before the cache round trip."""
        ratio, dim = self.ratio, self.dim
        x = x[:, : x.shape[1] // ratio * ratio]
        kv = F.linear(x, self.wkv.weight).unflatten(1, (-1, ratio))
        score = F.linear(x, self.wgate.weight).unflatten(1, (-1, ratio)) + self.ape
        if self.overlap:
            kv = torch.cat((F.pad(kv[:, :-1, :, :dim], (0, 0, 0, 0, 1, 0)), kv[..., dim:]), 2)
            prev = F.pad(score[:, :-1, :, :dim], (0, 0, 0, 0, 1, 0), value=MASKED)
            score = torch.cat((prev, score[..., dim:]), 2)
        entries = num.cast((score.softmax(2) * kv).sum(2))
        return num.rms_rope(entries, self.norm.weight, cos[: x.shape[1] : ratio], sin[: x.shape[1] : ratio])


class Indexer(nn.Module):
    """Lightning indexer: scores compressed entries per query."""

    def __init__(self, cfg, ratio):
        super().__init__()
        self.heads, self.dim = cfg["index_n_heads"], cfg["index_head_dim"]
        self.wq_b = linear(self.heads * self.dim, cfg["q_lora_rank"], "fp8")
        self.weights_proj = linear(self.heads, cfg["hidden_size"], "bf16")
        self.compressor = Compressor(cfg, ratio, self.dim)

    def forward(self, num, x, qr, cos, sin):
        """x [B, T, D], qr [B, T, q_lora] -> scores [B, T, W]."""
        q = num.linear(qr, self.wq_b.weight).unflatten(-1, (self.heads, self.dim))
        q = num.rope(q, cos[: x.shape[1], None], sin[: x.shape[1], None])
        k = self.compressor(num, x, cos, sin)
        if num.official:
            q, k = (ste(num.cast(hadamard(t)), fp4_act_sim) for t in (q, k))
        u = num.cast(F.linear(x, self.weights_proj.weight)) * (self.dim * self.heads) ** -0.5
        return (torch.einsum("bthd,bwd->bthw", q, k).relu() * u.unsqueeze(-1)).sum(2)


class Attention(nn.Module):
    """Sliding window plus compressed entries plus sink, one shared key-value head."""

    def __init__(self, cfg, ratio):
        super().__init__()
        self.cfg, self.ratio = cfg, ratio
        self.heads, self.dim = cfg["num_attention_heads"], cfg["head_dim"]
        self.groups, self.topk = cfg["o_groups"], cfg["index_topk"]
        hidden, lora, o_lora = cfg["hidden_size"], cfg["q_lora_rank"], cfg["o_lora_rank"]
        self.wq_a, self.q_norm = linear(lora, hidden, "fp8"), norm_weight(lora)
        self.wq_b = linear(self.heads * self.dim, lora, "fp8")
        self.wkv, self.kv_norm = linear(self.dim, hidden, "fp8"), norm_weight(self.dim)
        self.attn_sink = nn.Parameter(torch.zeros(self.heads))
        self.wo_a = linear(self.groups * o_lora, self.heads * self.dim // self.groups, "fp8_bf16")
        self.wo_b = linear(hidden, self.groups * o_lora, "fp8", 0.3)
        if ratio:
            self.compressor = Compressor(cfg, ratio, self.dim)
        if ratio == 4:
            self.indexer = Indexer(cfg, ratio)

    def compressed(self, num, x, qr, cos, sin):
        """Entries [B, W, d], their visibility [B or 1, T, W], index scores [B, T, W] or None if all are selected."""
        entries = num.kv(self.compressor(num, x, cos, sin), self.cfg["qk_rope_head_dim"])
        position = torch.arange(x.shape[1])
        visible = torch.arange(entries.shape[1]) < ((position + 1) // self.ratio)[:, None]
        visible = visible[None]
        if self.ratio != 4 or entries.shape[1] <= self.topk:
            return entries, visible, None
        score = self.indexer(num, x.detach(), qr.detach(), cos, sin)
        ranked = score.detach().masked_fill(~visible, MASKED)
        kept = torch.zeros_like(ranked, dtype=torch.bool).scatter_(2, ranked.topk(self.topk, -1).indices, True)
        return entries, visible & kept, score

    def chunks(self, keys):
        """Window keys per chunk of queries [B, C, S, d], and which a query may see [C, T / C, S].

        Long rows are cut at the window, so that a query meets the keys of two windows and not of the whole row.
        """
        batch, length, dim = keys.shape
        window = self.cfg["sliding_window"]
        age = torch.arange(length)[:, None] - torch.arange(length)
        if length <= 2 * window or length % window:
            return keys[:, None], ((age >= 0) & (age < window))[None]
        parts = keys.unflatten(1, (-1, window))
        pairs = torch.cat((F.pad(parts[:, :-1], (0, 0, 0, 0, 1, 0)), parts), 2)
        seen = ((age >= 0) & (age < window))[window : 2 * window, : 2 * window].repeat(length // window, 1, 1)
        seen[0, :, :window] = False
        return pairs, seen

    def core(self, num, q, keys, entries, visible):
        """q [B, T, H, d], keys [B, T, d] -> output [B, T, H, d], attention mass of the entries [B, H, T, W]."""
        batch, length, _, _ = q.shape
        keys, mask = self.chunks(keys)
        count = mask.shape[0]
        mask = mask[None]
        if entries is not None:
            keys = torch.cat((keys, entries[:, None].expand(-1, count, -1, -1)), 2)
            visible = visible.unflatten(1, (count, -1))
            mask = torch.cat((mask.expand(visible.shape[0], -1, -1, -1), visible), 3)
        q = q.unflatten(1, (count, -1))
        logits = torch.einsum("bcthd,bcsd->bchts", q, keys) * self.dim**-0.5
        logits = logits.masked_fill(~mask[:, :, None], MASKED)
        top = logits.detach().amax(-1, keepdim=True)
        weight = (logits - top).exp()
        total = weight.sum(-1, keepdim=True) + (self.attn_sink[:, None, None] - top).exp()
        out = torch.einsum("bchts,bcsd->bcthd", num.cast(weight), keys) / total.transpose(2, 3)
        if entries is None:
            return out.flatten(1, 2), None
        mass = (weight.detach()[..., -entries.shape[1] :] / total.detach()).transpose(1, 2).flatten(2, 3)
        return out.flatten(1, 2), mass

    def forward(self, num, x, cos, sin):
        """x [B, T, D] -> (output [B, T, D], indexer loss or None)."""
        batch, length, _ = x.shape
        cos_t, sin_t = cos[:length], sin[:length]
        qr = num.rms(num.linear(x, self.wq_a.weight), self.q_norm.weight)
        q = num.linear(qr, self.wq_b.weight).unflatten(-1, (self.heads, self.dim))
        q = num.rms_rope(q, None, cos_t, sin_t)
        kv = num.rms_rope(num.linear(x, self.wkv.weight), self.kv_norm.weight, cos_t, sin_t)
        keys = num.kv(kv, self.cfg["qk_rope_head_dim"])
        entries = index_score = visible = None
        if self.ratio and length >= self.ratio:
            entries, visible, index_score = self.compressed(num, x, qr, cos, sin)
        if num.fast and index_score is None:
            mass = None
            out = fast.Attend.apply(q, keys, entries, self.attn_sink, self.cfg["sliding_window"], self.ratio)
            out = num.cast(fast.RmsRope.apply(num.cast(out), None, cos_t, sin_t, False, -1))
        else:
            out, mass = self.core(num, q, keys, entries, visible)
            out = num.rope(num.cast(out), cos_t[:, None], -sin_t[:, None])
        grouped = out.reshape(batch, length, self.groups, -1)
        z = torch.einsum("btgi,goi->btgo", grouped, self.wo_a.weight.unflatten(0, (self.groups, -1)))
        y = num.linear(num.cast(z).flatten(2), self.wo_b.weight)
        return y, index_loss(index_score, visible, mass)


def index_loss(score, visible, mass):
    """Cross-entropy of the indexer's softmax against the attention mass of the entries it kept."""
    if score is None:
        return None
    target = mass.sum(1)
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-9)
    log_prob = score.masked_fill(~visible, MASKED).log_softmax(-1)
    return -(target * log_prob.masked_fill(~visible, 0.0)).sum(-1).mean()


class Block(nn.Module):
    """Attention and MoE, each wrapped in hyper-connections."""

    def __init__(self, cfg, layer):
        super().__init__()
        n = cfg["hc_mult"]
        self.hc_attn, self.hc_ffn = HyperConnection(cfg, 2 * layer % n), HyperConnection(cfg, (2 * layer + 1) % n)
        self.attn_norm, self.ffn_norm = norm_weight(cfg["hidden_size"]), norm_weight(cfg["hidden_size"])
        self.attn, self.ffn = Attention(cfg, cfg["compress_ratios"][layer]), Moe(cfg, layer)

    def attention(self, num, h, batch, cos, sin):
        x, post, mix = self.hc_attn(num, h)
        x = num.rms(x, self.attn_norm.weight)
        y, loss = self.attn(num, x.unflatten(0, (batch, -1)), cos, sin)
        return expand(num, y.flatten(0, 1), h, post, mix), loss

    def ffn_input(self, num, h):
        x, post, mix = self.hc_ffn(num, h)
        return num.rms(x, self.ffn_norm.weight), post, mix

    def forward(self, num, h, ids, batch, cos, sin):
        """h [N, n, D] -> [N, n, D], and the indexer loss or None."""
        h, loss = self.attention(num, h, batch, cos, sin)
        x, post, mix = self.ffn_input(num, h)
        return expand(num, self.ffn(num, x, ids), h, post, mix), loss


class Model(nn.Module):
    """Token ids to final hidden states and logits."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.num = cfg, Numerics()
        vocab, hidden, n = cfg["vocab_size"], cfg["hidden_size"], cfg["hc_mult"]
        self.embed, self.head = Weight((vocab, hidden), "bf16", 0.3), Weight((vocab, hidden), "bf16", 0.02)
        self.norm = norm_weight(hidden)
        self.hc_head_fn = nn.Parameter(torch.randn(n, n * hidden) * 0.3 * (n * hidden) ** -0.5)
        self.hc_head_base, self.hc_head_scale = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.ones(1))
        self.layers = nn.ModuleList(Block(cfg, layer) for layer in range(cfg["num_hidden_layers"]))
        self.rope = {kind: rope_table(cfg, kind, 2048) for kind in (False, True)}

    def forward(self, ids):
        """ids [B, T] -> (normed hidden [N, D], indexer loss)."""
        flat = ids.flatten()
        h = self.num.cast(F.embedding(flat, self.embed.weight)).unsqueeze(1).repeat(1, self.cfg["hc_mult"], 1)
        index_losses = []
        for block in self.layers:
            cos, sin = self.rope[block.attn.ratio > 0]
            h, loss = block(self.num, h, flat, ids.shape[0], cos, sin)
            index_losses += [loss] if loss is not None else []
        rows = h.flatten(-2)
        m = F.linear(rows, self.hc_head_fn) * torch.rsqrt(
            rows.square().mean(-1, keepdim=True) + self.cfg["rms_norm_eps"]
        )
        pre = torch.sigmoid(m * self.hc_head_scale + self.hc_head_base) + self.cfg["hc_eps"]
        x = self.num.rms(collapse(self.num, h, pre), self.norm.weight)
        return x, sum(index_losses)

    def logits(self, x):
        """Normed hidden [.., D] -> logits [.., V]."""
        return F.linear(x, self.head.weight)
