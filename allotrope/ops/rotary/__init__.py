"""Rotary positions over the first `dim` channels of each head, in halves: channel i turns with i + dim / 2.

Channel pair i at position p turns by p / base^(2i / dim), after `scaling`:

    none       as it is
    linear     positions divided by `factor`
    llama3     slow channels divided by `factor`, fast ones kept, between them a blend; the bounds are wavelengths of
               `original_len` / `low_freq` and `original_len` / `high_freq`
    dynamic    base · (factor · s / original_len − (factor − 1))^(dim / (dim − 2)) where s = max(prompt length, p + 1)
               exceeds original_len
    qwen_ntk   base · alpha^(dim / (dim − 2)), alpha = 2·P − 1, P the smallest power of two with
               P · original_len ≥ prompt length

Angles, their sine and cosine are computed in fp32 whatever the compute dtype (in fp64 where x is fp64).
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role

SCALINGS = ("none", "linear", "llama3", "dynamic", "qwen_ntk")


def _cost(problem: Problem) -> Cost:
    """x read, the result written, two integers per row; six operations per pair of channels."""
    rows, width = problem.axes["rows"], problem.axes["width"]
    pairs = int(problem.params["heads"]) * int(problem.params["dim"]) // 2
    return Cost(bytes=rows * (2 * width * ELEMENT_BYTES[problem.dtype] + 16), flops=6 * rows * pairs)


def misfit(problem: Problem) -> str | None:
    """Why these numbers make no rotation; None if they do."""
    params = problem.params
    heads, head_dim, dim = (int(params[name]) for name in ("heads", "head_dim", "dim"))
    scaling = str(params.get("scaling", "none"))
    if scaling not in SCALINGS:
        return f"rotary scaling {scaling!r} is none of {', '.join(SCALINGS)}"
    if heads * head_dim != problem.axes["width"]:
        return f"{heads} heads of {head_dim} channels do not make a row of {problem.axes['width']}"
    if dim % 2 or not 0 < dim <= head_dim:
        return f"{dim} rotated channels are not an even part of a head of {head_dim}"
    if scaling in ("dynamic", "qwen_ntk") and dim == 2:
        return f"{scaling} scaling is undefined for 2 rotated channels"
    if scaling in ("llama3", "dynamic", "qwen_ntk") and int(params.get("original_len", 0)) < 1:
        return f"{scaling} scaling needs the training length, original_len"
    return None


CONTRACT = Contract(
    name="rotary",
    ins={
        "x": Operand(("rows", "width")),
        "positions": Operand(("rows",), Role.STEP, "int64"),
        "prompt_lens": Operand(("rows",), Role.STEP, "int64"),
        "memo": Operand((), Role.HOST, "memo", optional=True),
    },
    outs={"out": Operand(("rows", "width"))},
    params={
        "heads": None,
        "head_dim": None,
        "dim": None,
        "base": None,
        "scaling": "none",
        "factor": 1.0,
        "low_freq": 1.0,
        "high_freq": 4.0,
        "original_len": 0,
    },
    cost=_cost,
)
