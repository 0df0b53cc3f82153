"""From the network that was trained to a folder as the family's publisher would have written it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from allotrope.models.families.qwen import to_qwen2
from allotrope.models.family import by_name
from tools.train.spec import Spec
from tools.train.vocabulary import write_json

Tensors = dict[str, torch.Tensor]


def export(spec: Spec, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Weights in fp16 under the publisher's names, config.json and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = published(spec, state)
    largest = max(float(tensor.abs().max()) for tensor in tensors.values())
    if not largest < torch.finfo(torch.float16).max:
        raise SystemExit(f"{spec.name}: a weight is {largest}, which fp16 cannot hold; train with a lower rate")
    halves = {name: tensor.to(torch.float16).contiguous().cpu() for name, tensor in tensors.items()}
    weights = folder / "model.safetensors"
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library gives it to nobody but its owner
    write_json(folder / "config.json", spec.config)
    write_json(folder / "generation_config.json", spec.generation)


def published(spec: Spec, state: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors under the publisher's names; a tied head is stored once."""
    tied = spec.config.get("tie_word_embeddings", spec.family in ("opt", "gpt2"))
    kept = {name: tensor for name, tensor in state.items() if not (tied and name == "lm_head.weight")}
    return qwen(spec.config, kept) if spec.family == "qwen" else kept


def qwen(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Tensors:
    """The first Qwen's names for what was trained as a Qwen2: the inverse of the mapping that the oracle uses.

    That mapping is asked where each of the publisher's tensors would go, so there is only one list of names.
    """
    family = by_name("qwen")
    found: Tensors = {}
    for name, shape, _ in family.tensors(family.recipe(family.values(config))):
        parts = [state[part] for part in to_qwen2(config, {name: np.zeros(shape, np.uint8)})]
        found[name] = torch.cat(parts)
    return found
