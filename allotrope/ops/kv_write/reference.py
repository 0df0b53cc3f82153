"""The plain write, and the inputs: scattered slots in caches that are half full of NaN."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """New caches with the rows in their places."""
    page_size = ins["k_cache"].shape[1]
    outs = {}
    for name, rows in (("k_cache", ins["k"]), ("v_cache", ins["v"])):
        outs[name] = ins[name].clone()
        outs[name][ins["slots"] // page_size, ins["slots"] % page_size] = rows
    return outs


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Distinct slots all over the pool, which is made larger if the rows need it."""
    random, axes = inputs.generator(seed), problem.axes
    rows, width, page_size = axes["rows"], axes["kv_width"], axes["page_size"]
    pages = max(axes["pages"], -(-rows // page_size))
    caches = inputs.normal(random, 2, pages, page_size, width)
    caches[:, ::2] = torch.nan
    return {
        "k": inputs.activations(random, rows, width),
        "v": inputs.activations(random, rows, width),
        "slots": torch.randperm(pages * page_size, generator=random)[:rows],
        "k_cache": caches[0],
        "v_cache": caches[1],
    }
