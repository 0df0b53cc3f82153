"""Tiny models whose widths every group size of 32 divides, and what an engine's codes mean, decoded by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotrope.artifact.engine import Engine
from allotrope.artifact.plan import Plan
from allotrope.models.lower import lower
from allotrope.models.model import Model
from allotrope.ops.packing import PACKINGS
from tests.engines import MemoryEngine
from tests.tiny import KINDS, tiny
from tests.verifying import VOCAB

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "tune": "off", "threads": 1}
_GPT2 = {"n_embd": 64, "n_head": 4}
_OPT = {"hidden_size": 64, "num_attention_heads": 4, "ffn_dim": 96, "word_embed_proj_dim": 64}
_LLAMA = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}


def checkpoint(kind: str, folder: Path, **settings: Any) -> Path:
    """A tiny model of the kind, 64 wide."""
    wider = {"GPT2": _GPT2, "OPT": _OPT}.get(KINDS[kind][0], _LLAMA)
    if KINDS[kind][1].get("num_key_value_heads") == KINDS[kind][1].get("num_attention_heads") and wider is _LLAMA:
        wider = {**wider, "num_key_value_heads": 4}
    return tiny(kind, folder, **{"vocab_size": VOCAB, **wider, **settings})


def value_of(byte: int) -> float:
    """What a byte of e4m3 stands for."""
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    size = mantissa * 2.0**-9 if not exponent else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if sign else size


def decoded(form: str, codes: Any, scales: Any, zeros: Any) -> Any:
    """(code − zero) · scale, in fp32, from the bytes."""
    if form == "fp8":
        steps = np.array([value_of(byte) for byte in range(256)], np.float32)[codes]
    elif form == "int8":
        steps = codes.view(np.int8).astype(np.float32)
    else:
        halves = np.stack((codes & 15, codes >> 4), -1).reshape(len(codes), -1).astype(np.int64)
        steps = (halves if zeros is not None else (halves + 8) % 16 - 8).astype(np.float32)
    grouped = steps.reshape(len(steps), scales.shape[1], -1)
    if zeros is not None:
        grouped = grouped - zeros.astype(np.float32)[..., None]
    return (grouped * scales.astype(np.float32)[..., None]).reshape(steps.shape)


def slots_of(engine: Engine) -> dict[str, Any]:
    """Every stored slot by itself, as raw arrays; bf16 widened."""
    found = {}
    for name, weight in engine.manifest.plan.weights.items():
        shapes = [shape for _, shape in weight.parts]
        parts = PACKINGS[weight.packing].unpack(engine.array(name), shapes)
        for (slot, _), part in zip(weight.parts, parts, strict=True):
            wide = (part.astype(np.uint32) << 16).view(np.float32) if engine.dtype(name) == "bf16" else part
            found[slot] = wide
    return found


def wide_twin(engine: Engine, model: Model) -> tuple[MemoryEngine, Plan]:
    """The model with wide weights that are what the engine's codes mean, and its reference plan."""
    stored, formats = slots_of(engine), {}
    for call in engine.manifest.plan.calls:
        if call.op == "linear_codes":
            for slot, _ in engine.manifest.plan.weights[call.ins["codes"][2:]].parts:
                formats[slot.removesuffix(".codes")] = str(call.params["format"])
    weights = {slot: array.astype(np.float32) for slot, array in stored.items() if array.dtype != np.uint8}
    for path, form in formats.items():
        parts = stored[f"{path}.codes"], stored[f"{path}.scales"], stored.get(f"{path}.zeros")
        weights[f"{path}.weight"] = decoded(form, *parts)
    plan = lower(model.recipe)
    biases = {slot: np.zeros(w.parts[0][1], np.float32) for slot, w in plan.weights.items() if slot not in weights}
    assert all(slot.endswith(".bias") for slot in biases), "only biases that are zero are dropped"
    tensors = {slot: torch.from_numpy(np.ascontiguousarray(array)) for slot, array in (weights | biases).items()}
    return MemoryEngine(plan, tensors), plan
