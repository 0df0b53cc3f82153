"""The original of an engine: which checkpoint it was built from, and its oracles in transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from allotrope.errors import CheckpointError
from allotrope.hw.detect import available_memory
from allotrope.hw.device import Device
from allotrope.models.model import Model
from allotrope.verify.oracle import Loader, Oracle

_BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
_SHARE = 0.5  # of the free memory that an oracle held as a whole may take; two may be alive at once
FINER = {"fp32": "fp64", "fp16": "fp32", "bf16": "fp32"}
"""The precision that counts as the truth for an engine of this dtype."""

Raw = np.ndarray[Any, Any]
Read = Callable[[str], tuple[Raw, str]]
"""An original tensor by its canonical name, and its dtype tag (bf16 as uint16)."""


def oracle(
    model: Model,
    precision: str,
    device: Device,
    *,
    resident: bool | None = None,
    finer: Oracle | None = None,
    weights: Mapping[str, Loader] | None = None,
) -> Oracle:
    """`model` as transformers computes it, in `precision`. Held block by block where it would not fit whole.

    With `finer`, the same in a precision that holds the weights exactly, they are rounded from there and not
    read again. `weights` are loaders of others than the checkpoint's.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    described = model.family.oracle
    transformers.logging.set_verbosity_error()
    config_class = getattr(transformers, described.config_class)
    try:
        config = config_class(**described.config(model.config))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(
            f"transformers refuses the config: {' '.join(str(error).split())[:200]}",
            where=model.checkpoint.origin,
            remedy="without transformers' model of it there is nothing to compare with",
        ) from error
    # Nothing is padded here, and transformers' embedding does not stand a token outside the vocabulary.
    config.pad_token_id = model.generation["pad_token_id"]
    if resident is None:
        resident = model.parameters * _BYTES[precision] <= _SHARE * _free(device)
    return Oracle(
        getattr(transformers, described.model_class),
        config,
        (finer and finer.loaders()) or weights or loaders(model),
        precision,
        device.torch_name,
        layers=len(model.recipe.blocks),
        resident=resident,
    )


def loaders(model: Model, read: Read | None = None) -> dict[str, Loader]:
    """For each parameter of the oracle's class, by its name there, what reads it from the original tensors.

    The names are found by adapting stand-ins that hold no memory, one original module at a time. `read` gives
    other tensors than the checkpoint's.
    """
    reader = _ModuleReader(model, read or (lambda name: (model.read_original(name), model.original_dtype(name))))
    return {target: partial(reader.read, names, target) for names in modules(model) for target in targets(model, names)}


def targets(model: Model, names: Sequence[str]) -> list[str]:
    """The oracle's parameters that follow from one module's tensors."""
    standins = {name: np.broadcast_to(np.zeros((), np.uint8), model.original_shape(name)) for name in names}
    return list(model.family.oracle.tensors(model.config, standins))


def adapted(model: Model, names: Sequence[str], read: Read) -> dict[str, torch.Tensor]:
    """These parameters, of what `read` gives."""
    found = {name: read(name) for name in names}
    tags = {tag for _, tag in found.values()}
    if len(tags) != 1:
        raise CheckpointError(f"one module's tensors have several dtypes: {sorted(tags)}", where=names[0])
    tag = tags.pop()
    made = model.family.oracle.tensors(model.config, {name: raw for name, (raw, _) in found.items()})
    return {name: as_torch(array, tag) for name, array in made.items()}


def modules(model: Model) -> list[tuple[str, ...]]:
    """The original's tensors by canonical name, those of one module together."""
    groups: dict[str, list[str]] = {}
    for name in model.originals:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return [tuple(names) for names in groups.values()]


class _ModuleReader:
    """Reads and adapts one original module's tensors, and keeps the last: a fused one is asked for by parts."""

    def __init__(self, model: Model, read: Read) -> None:
        self._model, self._read = model, read
        self._names: tuple[str, ...] = ()
        self._adapted: dict[str, torch.Tensor] = {}

    def read(self, names: tuple[str, ...], target: str) -> torch.Tensor:
        """The parameter `target`, out of the module whose tensors are `names`."""
        if names != self._names:
            self._adapted, self._names = adapted(self._model, names, self._read), names
        return self._adapted[target]


def as_torch(array: Raw, tag: str) -> torch.Tensor:
    """A tensor of a checkpoint's raw array; bf16 arrives as uint16."""
    whole = np.ascontiguousarray(array)
    if tag == "bf16":
        return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(whole)


def _free(device: Device) -> int:
    if device.kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return available_memory()
