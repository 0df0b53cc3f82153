"""Tiny models as the tools that quantise write them, and the same with the wide weights that their codes stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from allotrope.models.quantised.stored import Stored
from tests import quantised_writers
from tests.quantised_kit import Array, dequantised, grid, real, reals, shuffled
from tests.tiny import rewrite_config, tiny

CT = "compressed-tensors"
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_inner": 96},
    "qwen": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96},
}
"""Wide enough for groups of 32, and q, k and v of different heights where the family has them."""


def config(stored: Stored) -> dict[str, Any]:
    """What the tool says of it in config.json."""
    if stored.method == CT:
        return _compressed(stored)
    shared = {"quant_method": stored.method, "bits": stored.bits, "group_size": stored.group}
    if stored.method == "awq":
        return {**shared, "zero_point": True, "version": "gemm", "modules_to_not_convert": list(stored.ignore)}
    layout = {"sym": stored.symmetric, "desc_act": stored.desc_act}
    return {**shared, **layout, "checkpoint_format": "gptq" if stored.zero_offset else "gptq_v2"}


def _compressed(stored: Stored) -> dict[str, Any]:
    strategy = "tensor" if stored.per_tensor else "channel" if stored.group == -1 else "group"
    number = {"num_bits": stored.bits, "type": "float" if stored.floating else "int"}
    weights = {**number, "symmetric": stored.symmetric, "strategy": strategy, "dynamic": False}
    weights |= {"group_size": stored.group} if strategy == "group" else {}
    weights |= {"actorder": "group"} if stored.desc_act else {}
    acts = (
        {**number, "num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}
        if stored.activations
        else None
    )
    group = {"targets": ["Linear"], "weights": weights, "input_activations": acts}
    return {
        "quant_method": CT,
        "format": stored.form,
        "config_groups": {"group_0": group},
        "ignore": list(stored.ignore),
        "quantization_status": "compressed",
    }


def quantised(kind: str, folder: Path, stored: Stored, *, dtype: str = "float32", scales: str = "fp16") -> Path:
    """Write a tiny model in codes to `folder`, and the wide one that it stands for to `folder`/wide.

    Its codes are drawn at random, so that every one of them occurs.
    """
    wide = tiny(kind, folder / "wide", dtype=dtype, **SIZES[kind])
    tiny(kind, folder, dtype=dtype, **SIZES[kind])
    tensors = load_file(wide / "model.safetensors")
    codes: dict[str, Array] = {}
    meant: dict[str, Array] = {}
    for seed, (name, tensor) in enumerate(sorted(tensors.items())):
        module = name.removesuffix(".weight")
        inside = ".h." in name or ".layers." in name
        if not inside or tensor.ndim != 2 or stored.ignores(module):
            codes[name] = meant[name] = tensor
            continue
        turned = kind == "gpt2"  # whose matrices lie [in, out]
        parts, matrix = _module(stored, tensor.shape[::-1] if turned else tensor.shape, seed, scales)
        codes |= {f"{module}.{part}": array for part, array in parts.items()}
        meant[name] = np.ascontiguousarray(matrix.T if turned else matrix)
    _save(codes, folder / "model.safetensors")
    _save(meant, wide / "model.safetensors")
    rewrite_config(folder, lambda said: {**said, "quantization_config": config(stored)})
    return folder


def _module(stored: Stored, shape: tuple[int, ...], seed: int, dtype: str) -> tuple[dict[str, Array], Array]:
    """One module's tensors, and the matrix that they mean, in fp32."""
    (outputs, inputs), bits = shape, stored.bits
    groups = 1 if stored.group == -1 else inputs // stored.group
    low = -(1 << bits - 1) if stored.method == CT else 0
    middle = low + (1 << bits - 1)
    codes = grid(outputs, inputs, low, low + (1 << bits) - 1, seed)
    zeros = [[middle] * groups for _ in range(outputs)]
    if not stored.symmetric:  # near the middle, so that outputs are about as often below as above zero
        zeros = grid(outputs, groups, middle - 2, middle + 2, seed + 1)
    order = shuffled(inputs, groups, seed) if stored.desc_act else [i * groups // inputs for i in range(inputs)]
    scales = _sized(reals(outputs, groups, dtype, seed), 1 if bits == 4 else 2**-9 if stored.floating else 2**-4)
    if stored.per_tensor:
        scales[:] = scales[0, 0]
    if stored.floating:
        codes = [[code if code & 0x7F != 0x7F else 0 for code in row] for row in grid(outputs, inputs, 0, 255, seed)]
        values = torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
        meant = values * np.array([[real(row[group]) for group in order] for row in scales], np.float32)
    else:
        meant = dequantised(codes, zeros, scales, order, np.float32)
    if stored.method == "gptq":
        return quantised_writers.gptq(codes, zeros, scales, order, bits, stored.zero_offset), meant
    if stored.method == "awq":
        return quantised_writers.awq(codes, zeros, scales), meant
    return quantised_writers.compressed(stored, codes, zeros, scales, order), meant


def _sized(scales: Array, size: float) -> Array:
    """Scales times a power of two, in their own dtype."""
    if scales.dtype == np.uint16:
        return scales + np.uint16(int(np.log2(size)) << 7)  # bf16's exponent
    return (scales * scales.dtype.type(size)).astype(scales.dtype)


def _save(tensors: Mapping[str, Array], path: Path) -> None:
    """bf16 and e4m3 as what they are, which NumPy has no name for."""
    found = {}
    for name, array in tensors.items():
        tensor = torch.from_numpy(np.ascontiguousarray(array.view(np.int16) if array.dtype == np.uint16 else array))
        kind = {np.dtype(np.uint16): torch.bfloat16, np.dtype(np.uint8): torch.float8_e4m3fn}.get(array.dtype)
        found[name] = tensor if kind is None else tensor.view(kind)
    save_file(found, path, metadata={"format": "pt"})
