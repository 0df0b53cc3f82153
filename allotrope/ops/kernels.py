"""GPU kernels that torch's compiler made of torch code while building: kept with the engine, launched without it.

What is kept is machine code for one kind of GPU and how to launch it over rows: a program takes `rows` of them, and
its arguments are tensors by name, the number of rows, or constants. Nothing is compiled when an engine runs.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allotrope.errors import EngineError
from allotrope.ops.contract import Array, Problem

ROWS = "#rows"
_MOST_CODE = 1 << 24  # bytes
Argument = str | int  # a tensor's name, ROWS, or a number


@dataclass(frozen=True)
class Kernel:
    """One kernel. `types` has a letter per argument, as torch's static launcher reads them."""

    name: str
    code: bytes
    shared: int  # bytes of shared memory
    warps: int
    types: str
    args: tuple[Argument | None, ...]
    rows: int  # that one program takes

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "code": base64.b64encode(self.code).decode(), "args": list(self.args)}

    @staticmethod
    def from_json(data: Any) -> Kernel:
        """The inverse. Strict: what does not fit is a ValueError or TypeError."""
        found = Kernel(**{**data, "code": base64.b64decode(data["code"], validate=True), "args": tuple(data["args"])})
        counts = (found.shared, found.warps - 1, found.rows - 1)
        well = all(type(count) is int and 0 <= count < 1 << 20 for count in counts) and type(found.types) is str
        well = well and len(found.args) == len(found.types) and 0 < len(found.code) <= _MOST_CODE
        known = all(arg is None or type(arg) is int or (type(arg) is str and arg) for arg in found.args)
        if not (well and known and type(found.name) is str and found.name.isidentifier()):
            raise ValueError("not a kernel")
        return found


Maker = Callable[[str, Problem], Kernel]
_KNOWN: dict[str, Kernel] = {}
_LOADED: dict[tuple[Kernel, int], Any] = {}  # by GPU: what is loaded on one cannot be launched on another
_MAKERS: list[Maker] = []


def install(kernels: Mapping[str, Any]) -> None:
    """Make an engine's kernels known. Of the same name, the last one installed counts."""
    for key, data in kernels.items():
        try:
            _KNOWN[key] = Kernel.from_json(data)
        except (TypeError, ValueError, KeyError) as error:
            raise EngineError(f"kernel {key!r} has the wrong form ({error})", remedy="rebuild the engine") from error


@contextmanager
def made_by(maker: Maker) -> Iterator[None]:
    """While this lasts, a kernel that is asked for and not known is made."""
    _MAKERS.append(maker)
    try:
        yield
    finally:
        _MAKERS.pop()


def missing(key: str, problem: Problem) -> str | None:
    """Why there is no kernel of this name, as a sentence; None if there is one, perhaps made just now."""
    if key not in _KNOWN and _MAKERS:
        try:
            _KNOWN[key] = _MAKERS[-1](key, problem)
        except (RuntimeError, ImportError, AttributeError, ValueError, TypeError) as error:
            return f"torch could not compile it: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None if key in _KNOWN else "the engine brings no kernel for it"


def known(key: str) -> Kernel:
    """The kernel of this name."""
    return _KNOWN[key]


def launch(key: str, tensors: Mapping[str, Array], rows: int) -> None:
    """Launch a kernel over so many rows, on the current stream."""
    import torch
    from torch import _C

    kernel, device = _KNOWN[key], torch.cuda.current_device()
    if (kernel, device) not in _LOADED:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(kernel.code)
            loaded = _C._StaticCudaLauncher._load_kernel(str(path), kernel.name, kernel.shared, device)
            _LOADED[kernel, device] = loaded[0]
    args = tuple(rows if arg == ROWS else tensors[arg] if isinstance(arg, str) else arg for arg in kernel.args)
    stream = torch.cuda.current_stream().cuda_stream
    grid = -(-rows // kernel.rows)
    _C._StaticCudaLauncher._launch_kernel(
        _LOADED[kernel, device], grid, 1, 1, kernel.warps, kernel.shared, kernel.types, args, stream
    )
