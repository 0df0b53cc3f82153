"""Norms as torch's compiler makes them: a kernel each, which the engine keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops import kernels
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.poison import torch_dtype

_COUNTED = 2**31  # elements that a kernel compiled for few rows can tell apart: it counts them in 32 bits
_PERSISTENT = 16384  # channels: a longer row is summed in loops, and read anew after the sum has been written


@dataclass(frozen=True)
class CompiledNorm:
    """`op` is layernorm or rmsnorm; or add_norm, which adds in place first."""

    op: str
    name: str = "inductor"
    version: int = 1
    capturable: bool = True

    def packings(self) -> Mapping[str, str]:
        """Vectors have only one."""
        return {"weight": "rows", "bias": "rows"} if self.op != "rmsnorm" else {"weight": "rows"}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Where no kernel is, or can be made."""
        if device.kind != "cuda":
            return "torch's compiler saves a GPU the launch of kernels, of which there are none here"
        if not hasattr(torch._C, "_StaticCudaLauncher"):
            return "this torch has no launcher for kernels that were compiled before"
        if int(problem.params.get("heads", 1)) != 1:
            return "it is made for whole rows, not for heads"
        if problem.axes["width"] % 8 or problem.axes["width"] > _PERSISTENT:
            return f"it is made for rows of a multiple of 8 and up to {_PERSISTENT} channels"
        if problem.axes["rows"] * problem.axes["width"] > _COUNTED:
            return f"it counts in 32 bits, and {problem.axes['rows']} rows of {problem.axes['width']} are more"
        return kernels.missing(self.key(problem), problem)

    def key(self, problem: Problem) -> str:
        """The kernel's name: what it was compiled for."""
        present = problem.present & {"weight", "bias"}
        return self._key(problem.dtype, problem.axes["width"], problem.params, present)

    def _key(self, dtype: str, width: int, params: Mapping[str, Scalar], present: frozenset[str]) -> str:
        norm = params.get("norm", self.op.removesuffix("norm"))
        return f"{self.op}/{self.name} {norm} {dtype} {width} {params['eps']} {' '.join(sorted(present))}".strip()

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """Its own: the same kernel for all row counts."""
        return self.name

    def workspace(self, problem: Problem, device: Device) -> int:
        """Nothing."""
        return 0

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> Mapping[str, Array]:
        """Launch the kernel over rows that lie dense."""
        x: Tensor = _dense(ins["x"])
        tensors = {name: _dense(ins[name]) for name in ("weight", "bias") if name in ins} | {"x": x}
        made = {"normed": torch.empty_like(x)}
        if self.op == "add_norm":
            made["out"] = _dense(out["out"])
            if made["out"].data_ptr() != ins["residual"].data_ptr():
                made["out"] = torch.empty_like(x).copy_(ins["residual"])
            tensors["residual"] = made["out"]
        tag = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[x.dtype]
        present = frozenset(tensors) & {"weight", "bias"}
        kernels.launch(self._key(tag, x.shape[1], params, frozenset(present)), tensors | made, len(x))
        if self.op != "add_norm":
            return {"out": made["normed"]}
        same = made["out"].data_ptr() == out["out"].data_ptr()
        return {"normed": made["normed"]} if same else made

    def samples(self, problem: Problem, rows: int) -> dict[str, Tensor]:
        """Tensors to compile with, in the order in which `code` takes them."""
        dtype, width = torch_dtype("compute", problem.dtype), problem.axes["width"]
        names = ["x", *(["residual"] if self.op == "add_norm" else []), "normed"]
        found = {name: torch.randn(rows, width, dtype=dtype, device="cuda") for name in names}
        return found | {
            name: torch.randn(width, dtype=dtype, device="cuda")
            for name in ("weight", "bias")
            if name in problem.present
        }

    def code(self, problem: Problem) -> Callable[..., None]:
        """What is compiled."""
        layer = problem.params.get("norm", self.op.removesuffix("norm")) == "layer"
        eps, width, adds = float(problem.params["eps"]), problem.axes["width"], self.op == "add_norm"
        names = list(self.samples_of(problem))

        def function(*tensors: Tensor) -> None:
            given = dict(zip(names, tensors, strict=True))
            x = given["x"]
            if adds:
                x = given["residual"].add_(x)
            weight, bias = given.get("weight"), given.get("bias")
            made = F.layer_norm(x, (width,), weight, bias, eps) if layer else F.rms_norm(x, (width,), weight, eps)
            given["normed"].copy_(made)

        return function

    def samples_of(self, problem: Problem) -> tuple[str, ...]:
        """The names in `samples`, in order."""
        own = ("x", "residual", "normed") if self.op == "add_norm" else ("x", "normed")
        return (*own, *(name for name in ("weight", "bias") if name in problem.present))


def _dense(tensor: Any) -> Tensor:
    """`tensor`, copied where its rows do not lie one after the other from 16 bytes on, as the kernel loads them."""
    found: Tensor = tensor
    return found if found.is_contiguous() and found.data_ptr() % 16 == 0 else found.contiguous().clone()
