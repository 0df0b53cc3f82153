"""Draws a token from each row's logits, and gives its log-probability.

First single logits may be adjusted: entry j makes x, the logit of token `adjust_tokens[j]` in drawn row
`adjust_rows[j]`, into (x / divide if x > 0 else x · divide) + add, taken in fp64 and rounded to fp32. There
is at most one entry for each row and token; one whose row is −1 is nothing.

Temperature 0 takes the lowest index among the largest logits. Otherwise, in this order: logits divided by
the temperature; the `top_k` largest kept (0: all); of these, sorted, the fewest whose mass reaches `top_p`,
and at least one (1: all); those at least `min_p` times as likely as the likeliest (0: all). Equal logits
rank by index. The token is then drawn from what is left, in the vocabulary's order, with one uniform from
Philox of (seed, position).

Exactly: a token's weight is the integer round(exp((x − max x) / temperature) · 2^b), with b such that all
weights of a row together stay below 2^53. Their sums are exact in fp64 in whatever order they are taken,
so every executor and every batch draws alike. The uniform picks the weight unit floor(u · total).

The log-probability is that of the raw logits: not adjusted, temperature 1, nothing removed. A row without a
finite maximum, raw or adjusted (NaN, +∞, or nothing but −∞), gets token 0 and NaN.

`greedy` promises that every temperature is 0, `filtered=False` that no row has a filter. Whoever knows may
say so and save the work; the bits are the same.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role

ADJUSTMENTS = ("adjust_rows", "adjust_tokens", "adjust_divide", "adjust_add")
"""The operands that are there together or not at all."""


def weight_bits(vocab: int) -> int:
    """The b of the definition above."""
    return 52 - vocab.bit_length()


def _cost(problem: Problem) -> Cost:
    """The drawn rows' logits once, their parameters, token and log-probability; an exponential per logit."""
    rows, vocab = problem.axes["rows"], problem.axes["vocab"]
    entries = 24 * problem.axes.get("adjustments", 0)
    return Cost(bytes=rows * (vocab * ELEMENT_BYTES[problem.dtype] + 40 + 12) + entries, flops=4 * rows * vocab)


CONTRACT = Contract(
    name="sample",
    ins={
        "logits": Operand(("logits", "vocab")),
        "rows": Operand(("rows",), Role.STEP, "int64"),
        "temperature": Operand(("rows",), Role.STEP, "fp32"),
        "top_k": Operand(("rows",), Role.STEP, "int32"),
        "top_p": Operand(("rows",), Role.STEP, "fp32"),
        "min_p": Operand(("rows",), Role.STEP, "fp32"),
        "seeds": Operand(("rows",), Role.STEP, "int64"),
        "sample_positions": Operand(("rows",), Role.STEP, "int64"),
        "adjust_rows": Operand(("adjustments",), Role.STEP, "int64", optional=True),
        "adjust_tokens": Operand(("adjustments",), Role.STEP, "int64", optional=True),
        "adjust_divide": Operand(("adjustments",), Role.STEP, "fp32", optional=True),
        "adjust_add": Operand(("adjustments",), Role.STEP, "fp32", optional=True),
    },
    outs={
        "tokens": Operand(("rows", "unit"), dtype="int64"),
        "logprobs": Operand(("rows", "unit"), dtype="fp32"),
    },
    cost=_cost,
    params={"greedy": False, "filtered": True},
)
