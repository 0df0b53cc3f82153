"""Fusions rewrite the plan and nothing else: same weights, same readers, columns where buffers were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from allotrope.artifact.plan import Plan
from allotrope.build import fuse
from allotrope.models.lower import lower
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Recipe

NORM = Norm("rms", 1e-5)
QKV, GATE_UP = fuse.by_name("qkv"), fuse.by_name("gate_up")


def plan(*, bias: bool = False, gated: bool = True) -> Plan:
    block = Block(Attention(4, 2, 8, bias=bias), Mlp(40, "silu", gated=gated, bias=bias), NORM)
    return lower(Recipe(50, 32, 64, (block,) * 3, NORM))


def parts(found: Plan) -> set[tuple[str, tuple[int, ...]]]:
    return {part for weight in found.weights.values() for part in weight.parts}


@pytest.mark.parametrize("bias", [False, True])
def test_qkv_becomes_one_call_over_columns(bias: bool) -> None:
    before = plan(bias=bias)
    after = fuse.apply(before, QKV)
    assert after.fusions == ("qkv",)
    assert len(before.calls) - len(after.calls) == 2 * 3
    (call,) = [call for call in after.calls if call.path == "blocks.1.attn.qkv"]
    expected = {"x": "b:normed", "weight": "w:blocks.1.attn.qkv.weight"}
    assert call.ins == (expected | {"bias": "w:blocks.1.attn.qkv.bias"} if bias else expected)
    assert call.outs == {"out": "b:qkv"}
    weight = after.weights["blocks.1.attn.qkv.weight"]
    assert [slot for slot, _ in weight.parts] == [f"blocks.1.attn.{part}.weight" for part in "qkv"]
    assert after.buffers["qkv"].width == 64
    spans = [(after.buffers[name].of, after.buffers[name].start, after.buffers[name].width) for name in "qkv"]
    assert spans == [("qkv", 0, 32), ("qkv", 32, 16), ("qkv", 48, 16)]


def test_nothing_else_changes() -> None:
    before = plan()
    after = fuse.apply(fuse.apply(before, QKV), GATE_UP)
    gone = {".q", ".k", ".v", ".gate", ".up"}
    old = {call.path: call for call in before.calls if not any(call.path.endswith(end) for end in gone)}
    new = {call.path: call for call in after.calls if not call.path.endswith((".qkv", ".gate_up"))}
    assert old == new
    assert parts(before) == parts(after)
    assert [block for block, _ in before.blocks()] == [block for block, _ in after.blocks()]
    assert Plan.from_json(after.to_json()) == after


def test_order_of_calls_is_kept() -> None:
    """The fused call stands where the first of its parts stood: after its input, before its readers."""
    after = fuse.apply(plan(), QKV)
    paths = [call.path for call in after.calls]
    written = set[str]()
    for call in after.calls:
        for slot in call.ins.values():
            if slot.startswith("b:"):
                base = after.buffers[slot[2:]].of or slot[2:]
                assert base in written, (call.path, slot)
        written |= {slot[2:] for slot in call.outs.values()}
    assert paths.index("blocks.0.attn.qkv") == paths.index("blocks.0.attn.norm") + 1


def test_where_it_cannot_be_applied_it_says_why() -> None:
    assert "side by side" in str(fuse.why_not(plan(gated=False), GATE_UP))
    assert fuse.why_not(plan(), QKV) is None
    biased = plan(bias=True)
    calls = tuple(
        replace(call, ins={"x": call.ins["x"], "weight": call.ins["weight"]})
        if call.path.endswith("1.attn.k")
        else call
        for call in biased.calls
    )
    assert "some of blocks.1.attn.q and its neighbours have a bias" in str(
        fuse.why_not(replace(biased, calls=calls), QKV)
    )
    other = tuple(
        replace(call, ins={**call.ins, "x": "b:y"}) if call.path == "blocks.2.attn.v" else call for call in plan().calls
    )
    assert "different inputs" in str(fuse.why_not(replace(plan(), calls=other), QKV))
    shared = tuple(
        replace(call, ins={**call.ins, "weight": "w:blocks.0.attn.k.weight"})
        if call.path == "blocks.2.attn.v"
        else call
        for call in plan().calls
    )
    assert "another reader" in str(fuse.why_not(replace(plan(), calls=shared), QKV))
    writer = tuple(
        replace(call, outs={"out": "b:q"}) if call.path == "blocks.0.attn.o" else call for call in plan().calls
    )
    assert "written by others" in str(fuse.why_not(replace(plan(), calls=writer), QKV))


def test_members_say_what_a_fused_call_replaces() -> None:
    assert fuse.members(plan(), GATE_UP)["blocks.2.mlp.gate_up"] == ("blocks.2.mlp.gate", "blocks.2.mlp.up")
