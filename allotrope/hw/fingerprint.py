"""What an engine's speed and results depend on, apart from its plan.

`hard` facts change results or what can run at all: an engine made under others is refused. `soft` facts
are worth one warning. Timings are reused only where both agree.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from allotrope.hw.device import Device


@dataclass(frozen=True)
class Fingerprint:
    """Facts by name, all text so that they compare and print as they are."""

    hard: dict[str, str]
    soft: dict[str, str]


def fingerprint(device: Device, isa: str | None = None) -> Fingerprint:
    """The fingerprint of this process on `device`. Imports torch only to ask a GPU's driver.

    `isa`: the instruction set of the native core, for what is computed or timed with its kernels.
    """
    torch_version = _version("torch")
    hard = {
        "device": device.kind,
        "arch": device.arch,
        "features": " ".join(device.features),
        "torch": ".".join(torch_version.split(".")[:2]),
    }
    if isa is not None:
        hard["isa"] = isa
    soft = {"name": device.name, "cores": str(device.cores), "torch_build": torch_version}
    if device.kind == "cuda":
        import torch

        hard["cuda"] = str(torch.version.cuda).partition(".")[0]
        soft["cuda_build"] = str(torch.version.cuda)
    return Fingerprint(hard, soft)


def versions() -> dict[str, str]:
    """Versions of the libraries that take part, for evidence and reports."""
    names = ("allotrope", "torch", "numpy", "safetensors", "tokenizers", "transformers", "sentencepiece", "tiktoken")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    for folder in sys.path:  # by the folder's name: the library that reads what is in it takes a megabyte
        for found in Path(folder or ".").glob(f"{name}-*.dist-info"):
            return found.name.removesuffix(".dist-info").rpartition("-")[2]
    return _looked_up(name)


def _looked_up(name: str) -> str:
    """As Python's own library tells it, for what is installed in some other way."""
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name == "allotrope":
            from allotrope import __version__

            return __version__
        return "absent"
