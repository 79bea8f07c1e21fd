"""Reads an exported folder back into the training model: what the files say, not what training remembers."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from export import E2M1_GRID, checkpoint_name
from model import Model
from quant import FP4_BLOCK, FP8_TILE, bf16_sim


def read_tensors(folder: Path):
    """All tensors of all shards, by name."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(folder / file, "pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})
    return tensors


def scale_values(scale):
    """F8_E8M0 -> f32."""
    return torch.exp2(scale.view(torch.uint8).float() - 127)


def unpack_fp4(weight, scale):
    """I8 [out, in/2], scale [out, in/32] -> f32 [out, in]."""
    byte = weight.view(torch.uint8)
    code = torch.stack((byte & 15, byte >> 4), -1).flatten(-2).long()
    value = E2M1_GRID[code & 7] * (1 - 2 * (code >> 3))
    return value * scale_values(scale).repeat_interleave(FP4_BLOCK, -1)


def unpack_fp8(weight, scale):
    """F8_E4M3 [out, in], scale per 128x128 -> f32 [out, in]."""
    full = scale_values(scale).repeat_interleave(FP8_TILE, 0).repeat_interleave(FP8_TILE, 1)
    return weight.float() * full[: weight.shape[0], : weight.shape[1]]


def value_of(tensors, name):
    """f32 value of one stored matrix or vector."""
    tensor = tensors[name]
    scale = tensors.get(name.removesuffix("weight") + "scale") if name.endswith("weight") else None
    if tensor.dtype == torch.int8:
        return unpack_fp4(tensor, scale)
    if tensor.dtype == torch.float8_e4m3fn:
        value = unpack_fp8(tensor, scale)
        return bf16_sim(value) if name.endswith("wo_a.weight") else value
    return tensor.float()


def load_model(folder: Path, official=True):
    """The exported model in evaluation mode with the served numerics."""
    config = json.loads((folder / "config.json").read_text())
    tensors, model = read_tensors(folder), Model(config)
    state = {}
    for name, current in model.state_dict().items():
        if ".experts." in name and ".shared_" not in name:
            prefix, _, which = name.rpartition(".")
            parts = [value_of(tensors, f"{prefix}.{e}.{which}.weight") for e in range(len(current))]
            state[name] = torch.stack(parts)
        elif name.endswith("tid2eid"):
            state[name] = tensors[name]
        else:
            state[name] = value_of(tensors, checkpoint_name(name))
    model.load_state_dict(state)
    model.num.official = official
    return model.eval()
