"""Having torch's compiler make a kernel of a tactic's torch code, and keeping what it made.

The code is compiled for any number of rows, run on a number of rows that is like no other size, and watched: the
arguments of its launch say which are tensors, which is the number of rows, and which are constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allotrope.ops import registry
from allotrope.ops.contract import Problem
from allotrope.ops.kernels import ROWS, Argument, Kernel

_ROWS = 97  # a prime that is no width
Launch = tuple[Any, tuple[int, int, int], tuple[Any, ...]]  # torch's kernel, grid, arguments


def make(key: str, problem: Problem) -> Kernel:
    """The kernel for `problem` of the tactic that `key` begins with: "op/tactic …"."""
    op, _, name = key.partition(" ")[0].partition("/")
    tactic: Any = registry.tactic(op, name)
    tensors: Mapping[str, Tensor] = tactic.samples(problem, _ROWS)
    dynamo: Any = torch._dynamo
    dynamo.reset()
    for tensor in tensors.values():
        if tensor.dim() > 1:
            dynamo.mark_dynamic(tensor, 0)
    compiled: Any = torch.compile(tactic.code(problem), fullgraph=True)
    with _watched() as (launches, codes), torch.inference_mode():
        compiled(*tensors.values())
        torch.cuda.synchronize()
    dynamo.reset()
    if len({launch[0].name for launch in launches}) != 1:
        raise RuntimeError(f"it became {len(launches)} kernels, not one")
    kernel, grid, args = launches[-1]
    rows = next((size for size in (2**power for power in range(8)) if -(-_ROWS // size) == grid[0]), 0)
    if not rows or grid[1:] != (1, 1):
        raise RuntimeError(f"its grid is {grid} for {_ROWS} rows")
    scratch = int(kernel.has_global_scratch) + int(kernel.has_profile_scratch)
    return Kernel(
        name=kernel.name,
        code=codes[kernel],
        shared=kernel.shared,
        warps=kernel.num_warps,
        types=kernel.arg_tys + "O" * scratch,
        args=(*(_named(arg, tensors) for arg in args), *(None,) * scratch),
        rows=rows,
    )


def _named(arg: Any, tensors: Mapping[str, Tensor]) -> Argument:
    if isinstance(arg, Tensor):
        name = next((name for name, tensor in tensors.items() if tensor.data_ptr() == arg.data_ptr()), None)
        if name is None:
            raise RuntimeError("it keeps something in memory of its own")
        return name
    if type(arg) is not int:
        raise RuntimeError(f"it takes an argument {arg!r}")
    return ROWS if arg == _ROWS else arg


@contextmanager
def _watched() -> Iterator[tuple[list[Launch], dict[Any, bytes]]]:
    """What torch's static launcher loads and launches meanwhile."""
    from torch._inductor import config
    from torch._inductor.runtime.static_triton_launcher import StaticallyLaunchedTritonKernel as Launcher

    launches: list[Launch] = []
    codes: dict[Any, bytes] = {}
    load, run = Launcher.load_kernel, Launcher.run

    def loading(kernel: Any, device: int) -> None:
        if kernel.cubin_path is not None:
            codes[kernel] = Path(kernel.cubin_path).read_bytes()
        load(kernel, device)

    def running(kernel: Any, x: int, y: int, z: int, stream: int, *args: Any) -> None:
        launches.append((kernel, (x, y, z), args))
        run(kernel, x, y, z, stream, *args)

    Launcher.load_kernel, Launcher.run = loading, running  # type: ignore[method-assign,assignment]
    try:
        with config.patch(use_static_cuda_launcher=True, force_disable_caches=True, compile_threads=1):
            yield launches, codes
    finally:
        Launcher.load_kernel, Launcher.run = load, run  # type: ignore[method-assign]
