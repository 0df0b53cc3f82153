"""The linear layer's reference and inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """torch's linear function."""
    return {"out": F.linear(ins["x"], ins["weight"], ins.get("bias"))}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Activations with loud channels; a weight that keeps their size."""
    random, axes = inputs.generator(seed), problem.axes
    ins = {
        "x": inputs.activations(random, axes["rows"], axes["in"]),
        "weight": inputs.normal(random, axes["out"], axes["in"], scale=axes["in"] ** -0.5),
    }
    if "bias" in problem.present:
        ins["bias"] = inputs.normal(random, axes["out"], scale=0.3)
    return ins
