"""The rows decoded; codes and scales as a linear layer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.codes import decoded
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.linear_codes import reference as linear_codes


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """In fp32, or in fp64 where the scales are."""
    ids, zeros = ins["ids"], ins.get("zeros")
    dtype = torch.float64 if ins["scales"].dtype == torch.float64 else torch.float32
    chosen = None if zeros is None else zeros[ids]
    return {"out": decoded(ins["codes"][ids], ins["scales"][ids], chosen, str(params["format"]), dtype)}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """A linear layer's weight, and ids from its first row to its last."""
    axes = {**problem.axes, "out": problem.axes["vocab"], "in": problem.axes["width"]}
    weight = linear_codes.make_inputs(replace(problem, op="linear_codes", axes=axes), seed)
    ids = inputs.indices(inputs.generator(seed), axes["rows"], axes["vocab"])
    return {"ids": ids} | {name: weight[name] for name in ("codes", "scales", "zeros") if name in weight}
