"""Writes a training checkpoint in the released layout: FP4 experts, FP8 projections, BF16 and F32 rest."""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import tokenizer as tokenizer_builder
from config import write_configs
from quant import fp4_weight_quant, fp8_weight_quant

NUM_SHARDS = 2
E2M1_GRID = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def scale_bytes(scale):
    """Power-of-two scales as F8_E8M0 (biased exponent byte)."""
    exponent = (scale.view(torch.int32) >> 23).to(torch.uint8)
    return exponent.view(torch.float8_e8m0fnu)


def pack_fp4(w):
    """w [out, in] -> I8 [out, in/2] (even column in the low nibble) and scale [out, in/32]."""
    grid, scale = fp4_weight_quant(w)
    code = torch.searchsorted(E2M1_GRID, grid.abs()).to(torch.uint8)
    code |= torch.signbit(grid).to(torch.uint8) << 3
    packed = code[:, 0::2] | (code[:, 1::2] << 4)
    return packed.contiguous().view(torch.int8), scale_bytes(scale.contiguous())


def pack_fp8(w):
    """w [out, in] -> F8_E4M3 [out, in] and scale per 128x128."""
    grid, scale = fp8_weight_quant(w)
    return grid.contiguous().to(torch.float8_e4m3fn), scale_bytes(scale.contiguous())


def stored(name, value, fmt):
    """Checkpoint tensors of one parameter; stacked experts are split."""
    if fmt == "fp4":
        prefix, _, which = name.rpartition(".")
        out = {}
        for e, expert in enumerate(value):
            out[f"{prefix}.{e}.{which}.weight"], out[f"{prefix}.{e}.{which}.scale"] = pack_fp4(expert)
        return out
    if fmt in ("fp8", "fp8_bf16"):
        weight, scale = pack_fp8(value)
        return {name: weight, name.removesuffix("weight") + "scale": scale}
    if fmt == "bf16":
        return {name: value.to(torch.bfloat16)}
    return {name: value}


def checkpoint_name(name):
    """`hc_attn.fn` is `hc_attn_fn` in the checkpoint; other names agree."""
    return name.replace("hc_attn.", "hc_attn_").replace("hc_ffn.", "hc_ffn_")


def checkpoint_tensors(model):
    """All tensors of the released layout, by name."""
    tensors = {}
    for name, param in model.named_parameters():
        fmt = getattr(param, "fmt", "f32")
        tensors.update(stored(checkpoint_name(name), param.detach().float(), fmt))
    for name, buffer in model.named_buffers():
        if name in model.state_dict():
            tensors[name] = buffer
    return {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}


def num_bytes(tensor):
    return tensor.numel() * tensor.element_size()


def write_shards(tensors, folder):
    """model-0000i-of-0000n.safetensors of about equal size, and the index."""
    total = sum(map(num_bytes, tensors.values()))
    shards, written = [{} for _ in range(NUM_SHARDS)], 0
    for name, tensor in tensors.items():
        shards[min(written * NUM_SHARDS // total, NUM_SHARDS - 1)][name] = tensor
        written += num_bytes(tensor)
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{NUM_SHARDS:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def export(model, recipe, folder: Path):
    """Write the whole folder of a recipe's model; each file appears complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temp:
        temp = Path(temp)
        write_shards(checkpoint_tensors(model), temp)
        write_configs(temp, recipe.config, recipe.generation)
        if not (folder / "tokenizer.json").exists():
            tokenizer_builder.build(recipe.name).save(str(temp / "tokenizer.json"))
        for file in sorted(temp.iterdir()):
            file.chmod(0o644)
            os.replace(shutil.move(file, folder / f".{file.name}.new"), folder / file.name)


def main():
    from model import Model
    from recipes import RECIPES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=RECIPES, default="flash")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file written by train.py")
    parser.add_argument("--out", type=Path, help="folder to write; the model's own without it")
    args = parser.parse_args()
    recipe = RECIPES[args.model]
    model = Model(recipe.config)
    model.load_state_dict(torch.load(args.checkpoint, weights_only=True)["model"])
    export(model, recipe, args.out or recipe.folder)


if __name__ == "__main__":
    main()
