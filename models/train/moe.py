"""Mixture of experts: gate, routed experts, shared expert."""

import torch
import torch.nn.functional as F
from torch import nn

import fast
from numerics import linear


class Experts(nn.Module):
    """Routed experts of one layer, stacked: w1, w3 [E, I, D], w2 [E, D, I]."""

    def __init__(self, cfg):
        super().__init__()
        count, inner, hidden = cfg["n_routed_experts"], cfg["moe_intermediate_size"], cfg["hidden_size"]
        for name, shape, gain in (
            ("w1", (inner, hidden), 1.0),
            ("w3", (inner, hidden), 1.0),
            ("w2", (hidden, inner), 0.3),
        ):
            param = nn.Parameter(torch.randn(count, *shape) * gain * shape[1] ** -0.5)
            param.fmt = "fp4"
            setattr(self, name, param)


class SharedExpert(nn.Module):
    """The expert every token visits."""

    def __init__(self, cfg):
        super().__init__()
        inner, hidden = cfg["moe_intermediate_size"] * cfg["n_shared_experts"], cfg["hidden_size"]
        self.w1, self.w3 = linear(inner, hidden, "fp8"), linear(inner, hidden, "fp8")
        self.w2 = linear(hidden, inner, "fp8", 0.3)


class Gate(nn.Module):
    """Router: sqrt(softplus) scores; a token-id table on hash layers, biased top-k elsewhere."""

    def __init__(self, cfg, layer):
        super().__init__()
        experts, self.topk = cfg["n_routed_experts"], cfg["num_experts_per_tok"]
        self.scaling = cfg["routed_scaling_factor"]
        self.weight = linear(experts, cfg["hidden_size"], "bf16").weight
        self.hashed = layer < cfg["num_hash_layers"]
        if self.hashed:
            self.register_buffer("tid2eid", hash_table(cfg, layer))
        else:
            self.register_buffer("bias", torch.zeros(experts))
            self.register_buffer("load", torch.zeros(experts), persistent=False)

    def forward(self, x, ids):
        """x [N, D], ids [N] -> experts [N, k], weights [N, k]."""
        score = F.softplus(F.linear(x, self.weight)).sqrt()
        if self.hashed:
            chosen = self.tid2eid[ids]
        else:
            chosen = (score.detach() + self.bias).topk(self.topk, -1).indices
        weight = score.gather(1, chosen)
        return chosen, weight / weight.sum(-1, keepdim=True) * self.scaling

    def rebalance(self, rate):
        """Loss-free balancing: push the selection bias of busy experts down."""
        if not self.hashed:
            self.bias += rate * torch.sign(self.load.mean() - self.load)
            self.load.zero_()


def hash_table(cfg, layer):
    """A fixed random table [vocab, k] of distinct experts per token."""
    rng = torch.Generator().manual_seed(1000 + layer)
    order = torch.rand(cfg["vocab_size"], cfg["n_routed_experts"], generator=rng).argsort(1)
    return order[:, : cfg["num_experts_per_tok"]].contiguous()


def swiglu(num, limit, x, w1, w3, w2, weight=None):
    """Clamped SwiGLU; the routing weight multiplies before the down projection."""
    if num.fast:
        return num.linear(num.cast(fast.SwiGlu.apply(num.linear(x, torch.cat((w1, w3))), weight, limit)), w2)
    gate = num.linear(x, w1).clamp(max=limit)
    up = num.linear(x, w3).clamp(-limit, limit)
    inner = F.silu(gate) * up
    return num.linear(num.cast(inner if weight is None else inner * weight), w2)


class Moe(nn.Module):
    """Gate, routed experts, shared expert."""

    def __init__(self, cfg, layer):
        super().__init__()
        self.limit = cfg["swiglu_limit"]
        self.gate, self.experts, self.shared_experts = Gate(cfg, layer), Experts(cfg), SharedExpert(cfg)

    def forward(self, num, x, ids):
        """x [N, D], ids [N] -> [N, D]."""
        chosen, weight = self.gate(x, ids)
        shared, experts = self.shared_experts, self.experts
        y = swiglu(num, self.limit, x, shared.w1.weight, shared.w3.weight, shared.w2.weight)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=experts.w1.shape[0])
        if self.training and not self.gate.hashed:
            self.gate.load += counts
        token = order // chosen.shape[1]
        rows = x.index_select(0, token).split(counts.tolist())
        weights = weight.flatten().index_select(0, order).unsqueeze(-1).split(counts.tolist())
        matrices = zip(experts.w1.unbind(), experts.w3.unbind(), experts.w2.unbind())
        parts = [swiglu(num, self.limit, r, *m, w) for r, w, m in zip(rows, weights, matrices) if len(r)]
        return num.cast(y.index_add(0, token, torch.cat(parts)))
