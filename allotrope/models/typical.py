"""A typical problem for every op, lowered from two small recipes: what `doctor` asks each tactic about."""

from __future__ import annotations

from dataclasses import replace

from allotrope.artifact.problems import Load, problem
from allotrope.models.lower import lower
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Positions, Recipe, Rotary
from allotrope.ops.contract import Problem

_LLAMA = Recipe(
    vocab=32000,
    hidden=768,
    max_len=2048,
    blocks=(
        Block(
            Attention(12, 4, 64, rotary=Rotary(64, 10000.0), qk_norm=Norm("rms", 1e-6), logn=2048),
            Mlp(2048, "silu", gated=True),
            Norm("rms", 1e-6),
        ),
    ),
    final_norm=Norm("rms", 1e-6),
)
_GPT = Recipe(
    vocab=50257,
    hidden=768,
    max_len=1024,
    blocks=(
        Block(
            Attention(12, 12, 64, bias=True, out_bias=True),
            Mlp(3072, "gelu_tanh", bias=True),
            Norm("layer", 1e-5, bias=True),
        ),
    ),
    final_norm=Norm("layer", 1e-5, bias=True),
    positions=Positions(1024),
    tied=True,
)


def typical_problems(dtype: str, rows: int = 8) -> dict[str, Problem]:
    """One problem per op: `rows` requests, each decoding one token at a context of 64."""
    found: dict[str, Problem] = {}
    for recipe in (_LLAMA, _GPT):
        plan = lower(recipe, dtype)
        for call in plan.calls:
            if call.op not in found:
                found[call.op] = problem(plan, call, Load(rows, requests=rows, context=64))
    alike = found["linear"]  # what fusing makes of it; fusions are the builder's
    found["linear_add"] = replace(alike, op="linear_add")
    biased = replace(alike, params={"kind": "gelu_tanh"}, present=frozenset({"bias"}))
    coded = {**alike.axes, "packed": alike.axes["in"] // 2, "groups": alike.axes["in"] // 32}
    found["linear_codes"] = replace(alike, op="linear_codes", axes=coded, params={"format": "int4"})
    found["linear_stored"] = replace(alike, op="linear_stored", params={"store": "bf16"}, dtype="fp32")
    table = found["embed"]
    found["embed_stored"] = replace(table, op="embed_stored", params={"store": "bf16"}, dtype="fp32")
    width = table.axes["width"]
    rows_of_codes = {**table.axes, "packed": width, "groups": 1}
    found["embed_codes"] = replace(table, op="embed_codes", axes=rows_of_codes, params={"format": "int8"})
    found["reorder"] = replace(alike, op="reorder", axes={"rows": rows, "width": alike.axes["in"]})
    found["add_norm"] = replace(found["layernorm"], op="add_norm", params={"norm": "layer", "eps": 1e-5})
    found["linear_activation"] = replace(biased, op="linear_activation")
    return found
