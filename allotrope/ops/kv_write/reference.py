"""The plain write, and the inputs: scattered slots in caches that are half full of NaN."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.kv_codes import coded
from allotrope.ops.kv_rows import COMPUTE


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """New caches with the rows in their places."""
    page_size, form = ins["k_cache"].shape[1], str(params.get("kv", COMPUTE))
    outs = {}
    for name, rows in (("k_cache", ins["k"]), ("v_cache", ins["v"])):
        laid = rows if form == COMPUTE else coded(rows, int(params["kv_heads"]), form)
        outs[name] = ins[name].clone()
        outs[name][ins["slots"] // page_size, ins["slots"] % page_size] = laid
    return outs


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Distinct slots all over the pool, which is made larger if the rows need it.

    Where they are to be coded, some heads are all zero, or not finite.
    """
    random, axes = inputs.generator(seed), problem.axes
    rows, width, page_size = axes["rows"], axes["kv_width"], axes["page_size"]
    pages = max(axes["pages"], -(-rows // page_size))
    shape = (2, pages, page_size, axes["cache_width"])
    k, v = (inputs.activations(random, rows, width) for _ in range(2))
    if problem.params.get("kv", COMPUTE) == COMPUTE:
        caches = inputs.normal(random, *shape)
        caches[:, ::2] = torch.nan
    else:
        caches = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        head = width // int(problem.params["kv_heads"])
        k[1::5, :head], v[2::7, -head:] = 0, 0
        k[3::11, -1], v[4::13, 0] = torch.nan, -torch.inf
    return {
        "k": k,
        "v": v,
        "slots": torch.randperm(pages * page_size, generator=random)[:rows],
        "k_cache": caches[0],
        "v_cache": caches[1],
    }
