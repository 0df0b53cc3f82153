"""The decoded weight, then the linear layer; inputs as rounding to nearest would give them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.codes import decoded
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.linear import reference as linear
from allotrope.ops.linear_codes import PER_BYTE
from allotrope.ops.rows import TOPS, quantise_rows

_LOUD = 20.0


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """In the precision of `x`, the decoded weight rounded to it once; with `activations` in fp32 at least.

    There the sums of codes, which fp16 could not hold, come first and the rows' scales after. In fp64 they are exact.
    `x` is what the compute dtype holds, so its codes are the same here, in whatever precision it comes.
    """
    x, form, activations = ins["x"], str(params["format"]), str(params.get("activations", "none"))
    if activations == "none":
        weight = decoded(ins["codes"], ins["scales"], ins.get("zeros"), form, x.dtype)
        return linear.reference({**ins, "weight": weight}, {})
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = quantise_rows(x, activations)
    weight = decoded(ins["codes"], ins["scales"], ins.get("zeros"), form, wide)
    out = F.linear(rows.codes.to(wide), weight) * rows.scales.to(wide)
    return {"out": (out + ins["bias"].to(wide) if "bias" in ins else out).to(x.dtype)}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """A linear layer's; codes of every value, and scales that keep the activations' size. Some rows are all zero.

    With `activations` there is always a loud channel, which sets its rows' scales; rows lie half way between codes, so
    that a scale or a division that errs by a bit shows; and rows are all zero.
    """
    random, axes = inputs.generator(seed), problem.axes
    out, groups, form = axes["out"], axes["groups"], str(problem.params["format"])
    if axes["packed"] * PER_BYTE[form] != axes["in"]:
        raise ValueError(f"{axes['packed']} bytes a row cannot hold {axes['in']} codes of {form}")
    codes = torch.randint(0, 256, (out, axes["packed"]), generator=random, dtype=torch.uint8)
    if form == "fp8":
        codes[(codes & 0x7F) == 0x7F] = 0  # of e4m3's values only these are NaN
    largest = {"int8": 128.0, "int4": 8.0, "fp8": 448.0}[form]
    sizes = 0.5 + torch.rand(out, groups, generator=random, dtype=torch.float64)
    scales = (sizes * axes["in"] ** -0.5 / largest).to(torch.float32 if groups == 1 else torch.float16)
    scales[1::7] = 0
    ins: dict[str, Tensor] = {
        "x": inputs.activations(random, axes["rows"], axes["in"]),
        "codes": codes,
        "scales": scales,
    }
    if problem.params.get("activations", "none") != "none":
        ins["x"][:, axes["in"] // 3] *= _LOUD
        ins["x"][1::4] = _ties(random, ins["x"][1::4], str(problem.params["activations"]))
        ins["x"][4::9] = 0
    if "zeros" in problem.present:
        ins["zeros"] = torch.randint(0, 16, (out, groups), generator=random, dtype=torch.uint8)
    if "bias" in problem.present:
        ins["bias"] = inputs.normal(random, out, scale=0.3)
    return ins


def _ties(random: torch.Generator, like: Tensor, form: str) -> Tensor:
    """Rows half way between codes, at a scale of 1/8; bf16 holds them exactly."""
    rows, width = like.shape
    if form == "int8":
        halves = torch.randint(-127, 127, (rows, width), generator=random).double() + 0.5
    else:  # of eight codes from one power of two to the next
        eighths = torch.randint(0, 8, (rows, width), generator=random).double() / 8
        halves = (1 + eighths + 1 / 16) * 2.0 ** torch.randint(-6, 8, (rows, width), generator=random)
    halves[:, 0] = TOPS[form]
    return halves / 8
