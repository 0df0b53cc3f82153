"""Buffers in the same memory are never needed at once: looked at call by call, and by what engines compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import TOKENS, Call, Plan
from allotrope.build import build
from allotrope.runtime.joints import joints
from allotrope.runtime.sharing import bytes_of, regions
from allotrope.runtime.step import WANT_ALL
from tests.engines import plan_of
from tests.narrow_kit import QUICK, checkpoint
from tests.native_kit import native_engine, native_executor, needs_core
from tests.test_eager import RECIPES, one_step
from tests.tiny import FAMILIES


def owner(plan: Plan, slot: str) -> str:
    name = plans.name(slot)
    while (of := plan.buffers[name].of) is not None:
        name = of
    return name


def misled(plan: Plan) -> list[str]:
    """The calls that would find another's values, or write where they read: a walk forwards, with what lies where.

    The module finds it the other way round.
    """
    found, lies, wrong = regions(plan), dict[int, str](), []
    assert found.keys() == {name for name, spec in plan.buffers.items() if spec.of is None}
    for call in plan.calls:
        reads = {owner(plan, slot) for slot in call.ins.values() if plans.kind(slot) == "b"}
        writes = {owner(plan, slot) for slot in call.outs.values() if plans.kind(slot) == "b"}
        found_own = all(lies.get(found[buffer]) == buffer for buffer in reads)
        if not found_own or len({found[buffer] for buffer in reads | writes}) < len(reads | writes):
            wrong.append(call.path)
        lies |= {found[buffer]: buffer for buffer in writes}
    return wrong


@pytest.mark.parametrize("name", RECIPES)
def test_who_reads_finds_what_was_written_for_him(name: str) -> None:
    assert misled(plan_of(RECIPES[name])) == []


BY_ROWS = ("add", "add_norm", "add_positions", "layernorm", "rmsnorm", "rotary", "select_rows")


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_thread_reads_for_itself_is_left_alone_until_all_meet(name: str) -> None:
    """And what is computed together reads and writes at once."""
    plan = plan_of(RECIPES[name])
    together = joints(plan, lambda call: call.op == "linear")
    assert together
    found = regions(plan, together, lambda call: call.op in BY_ROWS)
    read, behind = set[int](), {joint.call.path for joint in together.values()}
    for place, call in enumerate(plan.calls):
        if call.path in behind:
            continue  # looked at with the layer before it
        reads, writes = places(plan, found, call)
        if call.path in together:
            more, results = places(plan, found, plan.calls[place + 1])
            assert results.isdisjoint(reads), call.path
            reads, writes = reads | more, writes | results
        if call.op in BY_ROWS:
            read |= reads
        else:
            assert writes.isdisjoint(read), call.path
            read = set()


def places(plan: Plan, found: Mapping[str, int], call: Call) -> tuple[set[int], set[int]]:
    """The regions that a call reads and writes."""
    reads, writes = (
        {found[owner(plan, slot)] for slot in slots.values() if plans.kind(slot) == "b"}
        for slots in (call.ins, call.outs)
    )
    return reads, writes


@pytest.mark.parametrize("kind", FAMILIES)
def test_in_every_familys_fused_plan_too(tmp_path: Path, kind: str) -> None:
    built = build(str(checkpoint(kind, tmp_path / "ckpt")), tmp_path / "engine", weights="int8", **QUICK)
    assert misled(built.manifest.plan) == []


@pytest.mark.parametrize("name", RECIPES)
def test_it_saves_memory_and_what_is_read_at_the_end_is_left_alone(name: str) -> None:
    plan = plan_of(RECIPES[name])
    found, rows = regions(plan), {TOKENS: 100, "logits": 2, "samples": 2}
    for number in set(found.values()):
        sharing = [buffer for buffer, region in found.items() if region == number]
        assert len(sharing) == 1 or {plan.buffers[buffer].rows for buffer in sharing} == {TOKENS}
    apart = sum(4 * spec.width * rows[spec.rows] for spec in plan.buffers.values() if spec.of is None)
    assert bytes_of(plan, rows, found) < 0.8 * apart


def test_what_is_needed_twice_is_not_written_over() -> None:
    """A part that is written keeps the rest of its buffer; what is read before it is written has its own region."""
    plan = plan_of(RECIPES["llama"])
    cut = replace(plan, calls=plan.calls[3:])  # whose first buffers nobody wrote
    found = regions(cut)
    first = {owner(cut, slot) for slot in cut.calls[0].ins.values() if plans.kind(slot) == "b"}
    for buffer in first:
        assert [name for name, region in found.items() if region == found[buffer]] == [buffer]


@needs_core
@pytest.mark.parametrize("name", RECIPES)
def test_an_engine_computes_the_same_with_and_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, step = native_engine(RECIPES[name]), one_step([5, 6, 7, 8, 9, 5, 7], WANT_ALL)
    shared = native_executor(engine).run(step).logits.copy()
    monkeypatch.setattr(
        "allotrope.runtime.native.regions", lambda plan, *_: {name: number for number, name in enumerate(plan.buffers)}
    )
    assert np.array_equal(native_executor(engine).run(step).logits, shared)
