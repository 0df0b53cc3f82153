"""The activations' reference and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar

KINDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """torch's function of that name."""
    return {"out": KINDS[str(params["kind"])](ins["x"])}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Values from where the functions bend to far out on both sides."""
    random, axes = inputs.generator(seed), problem.axes
    return {"x": inputs.activations(random, axes["rows"], axes["width"])}
