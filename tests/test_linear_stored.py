"""Linear layers over weights in 16 bits: every tactic against the stored weight, row classes, cost, refusals."""

from __future__ import annotations

import pytest

from allotrope.hw.detect import detect
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = detect("cpu")


def problem(store: str, rows: int, into: int, out: int, *present: str, dtype: str = "fp32") -> Problem:
    axes = {"rows": rows, "in": into, "out": out}
    return Problem("linear_stored", axes, {"store": store}, dtype, frozenset(present))


@pytest.mark.parametrize("store", ["fp16", "bf16"])
@pytest.mark.parametrize("sizes", [(1, 64, 64), (7, 33, 5), (20, 96, 130)], ids=str)
def test_every_tactic_is_right_and_keeps_its_row_class(store: str, sizes: tuple[int, int, int]) -> None:
    for posed in (problem(store, *sizes), problem(store, *sizes, "bias")):
        tactics = [t for t in registry.tactics(posed.op) if t.why_not(posed, CPU) is None]
        assert len(tactics) >= 6
        for tactic in tactics:
            assert check.check(tactic, posed, CPU).reason is None, tactic.name
            if tactic.row_class(posed, CPU):
                assert check.check_rows(tactic, posed, CPU, most=64) is None, tactic.name


def test_weights_are_never_rounded_twice() -> None:
    [tactic] = [tactic for tactic in registry.tactics("linear_stored") if tactic.name == "torch_mm"]
    assert tactic.why_not(problem("fp16", 8, 64, 64), CPU) is None
    narrower = tactic.why_not(problem("fp16", 8, 64, 64, dtype="bf16"), CPU)
    assert narrower == "weights stored in fp16 would be rounded once more to bf16"
    unknown = tactic.why_not(problem("fp12", 8, 64, 64), CPU)
    assert unknown == "a store in 'fp12' is unknown; there are fp16, bf16"


def test_it_costs_what_is_read() -> None:
    cost = registry.contract("linear_stored").cost(problem("bf16", 2, 128, 10, "bias"))
    assert cost.bytes == 128 * 10 * 2 + (10 + 2 * 138) * 4
    assert cost.flops == 2 * (2 * 128 * 10 + 10)
