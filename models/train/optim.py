"""Muon for the projections, AdamW for everything else."""

from functools import partial

import torch
import torch.distributed as dist

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5


def orthogonalise(g):
    """Newton-Schulz: g [..., rows, cols] with its singular values pushed towards one."""
    a, b, c = NS_COEFFICIENTS
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NS_STEPS):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


def share_work(jobs):
    """Results of the jobs [(tensor, function)], each done by one process only and sent to the others."""
    if not dist.is_initialized():
        return [make() for _, make in jobs]
    flat = torch.zeros(sum(t.numel() for t, _ in jobs))
    parts = [part.view_as(t) for part, (t, _) in zip(flat.split([t.numel() for t, _ in jobs]), jobs)]
    costly_first = sorted(range(len(jobs)), key=lambda i: -parts[i].numel())
    for i in costly_first[dist.get_rank() :: dist.get_world_size()]:
        parts[i].copy_(jobs[i][1]())
    dist.all_reduce(flat)
    return parts


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix; stacked experts are orthogonalised one by one."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
            jobs = [(p, partial(self.direction, p, group["momentum"])) for p in params]
            for p, update in zip(params, share_work(jobs)):
                gain = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * gain)

    def direction(self, p, momentum):
        """Where a parameter goes."""
        return orthogonalise(p.grad.lerp(self.state[p]["momentum"], momentum))


def optimizers(model, muon_lr, adam_lr, indexer_lr):
    """[(optimizer, peak learning rates)]; the indexer learns from its own loss at a constant rate."""
    muon, adam, indexer = [], [], []
    for name, p in model.named_parameters():
        if ".indexer." in name:
            indexer.append(p)
        elif name.startswith("layers") and getattr(p, "fmt", "") in ("fp4", "fp8", "fp8_bf16"):
            muon.append(p)
        elif "compressor.w" in name:
            muon.append(p)
        else:
            adam.append(p)
    return [
        Muon(muon, muon_lr),
        torch.optim.AdamW(adam, adam_lr, betas=(0.9, 0.97), weight_decay=0.0),
        torch.optim.AdamW(indexer, indexer_lr, betas=(0.9, 0.97), weight_decay=0.0),
    ]
