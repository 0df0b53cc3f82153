"""Attention over narrow caches: right against attention over what they mean, and bit for bit the same in company."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allotrope.ops import check, registry
from allotrope.ops.attention.reference import Request, assemble
from allotrope.ops.contract import Problem
from allotrope.ops.kv_codes import coded, fake
from allotrope.ops.kv_rows import NARROW, row_width
from tests.test_ops_attention import CPU, EXACT, TACTICS, Shape, by_exact_name, by_name, dense, part

pytestmark = pytest.mark.usefixtures("one_thread")
by_form = pytest.mark.parametrize("form", NARROW)
SHAPES = {
    "grouped": Shape(heads=6, kv_heads=2, head_dim=5, page_size=5),
    "one channel": Shape(heads=3, kv_heads=3, head_dim=1, page_size=1),
    "wide": Shape(heads=4, kv_heads=1, head_dim=80, page_size=64),
    "window": Shape(heads=4, kv_heads=2, head_dim=3, window=37),
    "bf16": Shape(heads=14, kv_heads=2, dtype=torch.bfloat16),
}
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def attend(tactic: Any, shape: Shape, form: str, requests: list[Request], seed: int = 0) -> list[torch.Tensor]:
    """Each request's result over caches of this form."""
    random = torch.Generator().manual_seed(seed)
    ins = assemble(requests, shape.page_size, random, form, shape.kv_heads)
    out = torch.full_like(ins["q"], torch.nan)
    tactic.run({"out": out}, ins, {**shape.params, "kv": form}, None)
    return list(out.split([len(request.q) for request in requests]))


def meant(shape: Shape, form: str, sequence: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The sequence with keys and values as the cache gives them back, in fp64."""
    q, k, v = sequence
    return q.double(), *(fake(part.float(), shape.kv_heads, form).double() for part in (k, v))


@by_name
@by_form
@by_shape
def test_it_equals_dense_attention_over_what_the_cache_means(tactic: Any, form: str, shape: Shape) -> None:
    lengths, firsts = (300, 1, 17, 129), (260, 0, 16, 100)
    sequences = [shape.sequence(length, seed) for seed, length in enumerate(lengths)]
    parts = [part(s, first, length) for s, first, length in zip(sequences, firsts, lengths, strict=True)]
    tolerance = 2e-2 if shape.dtype == torch.bfloat16 else 3e-6
    for result, sequence, first in zip(attend(tactic, shape, form, parts), sequences, firsts, strict=True):
        expected = dense(shape, meant(shape, form, sequence))  # type: ignore[arg-type]
        assert (result.double() - expected[first:]).abs().max() < tolerance


@by_exact_name
@by_form
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_bits_depend_on_the_request_alone(tactic: Any, form: str, data: st.DataObject) -> None:
    """Whatever the shape, the chunk, the page size and the company."""
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    # torch's products of single rows of an odd width have other bits in a batch, over wide caches, too: a builder
    # that is about to choose such a tactic proves the class first, and gives it up
    odd = [] if tactic.queries == 1 else [3, 5]
    dim, page = data.draw(st.sampled_from([2, 8, 80, *odd])), data.draw(st.sampled_from([1, 16, 64]))
    shape = Shape(kv_heads * group, kv_heads, dim, data.draw(st.sampled_from([0, 9])), page)
    length = data.draw(st.integers(1, 150))
    sequence = shape.sequence(length, 1)
    whole = attend(tactic, shape, form, [part(sequence, 0, length)])[0]
    first = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(first + 1, length))
    others = [part(shape.sequence(n, n), n - 1, n) for n in data.draw(st.lists(st.integers(1, 140), max_size=4))]
    place = data.draw(st.integers(0, len(others)))
    moved = dataclasses.replace(shape, page_size=data.draw(st.sampled_from([1, 16, 64])))
    together = attend(tactic, moved, form, [*others[:place], part(sequence, first, stop), *others[place:]], seed=first)
    assert torch.equal(together[place], whole[first:stop])


def posed(form: str, rows: int, requests: int, context: int, shape: Shape, dtype: str = "fp32") -> Problem:
    axes = {"rows": rows, "requests": requests, "context": context, "page_size": shape.page_size}
    axes |= {"width": shape.heads * shape.head_dim, "cache_width": row_width(form, shape.kv_heads, shape.head_dim)}
    return Problem("attention", axes, {**shape.params, "kv": form}, dtype)


@by_name
@by_form
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_tactics_pass_the_numerics_policy_in_poisoned_memory(tactic: Any, form: str, dtype: str) -> None:
    for sizes in ((1, 1, 1), (8, 8, 200), (90, 3, 70)):
        for name in ("grouped", "window", "wide"):
            result = check.check(tactic, posed(form, *sizes, SHAPES[name], dtype), CPU, seed=1)
            assert result.reason is None, (sizes, name)


@by_exact_name
@by_form
def test_row_classes_are_proven(tactic: Any, form: str) -> None:
    problem = posed(form, 4, 2, 90, SHAPES["window"], "bf16")
    others = [other for other in EXACT if other.row_class(problem, CPU) == tactic.row_class(problem, CPU)]
    assert check.check_rows(tactic, problem, CPU, seed=3, among=others) is None


@by_name
@by_form
def test_a_head_that_is_not_finite_is_seen_by_its_own_queries_alone(tactic: Any, form: str) -> None:
    shape = SHAPES["grouped"]
    q, k, v = shape.sequence(40, 7)
    clean = attend(tactic, shape, form, [part((q, k, v), 30, 40)])[0]
    k[3, 0] = torch.inf  # of the first key head, which three heads read
    spoilt = attend(tactic, shape, form, [part((q, k, v), 30, 40)])[0]
    assert spoilt[:, :15].isnan().all() and torch.equal(spoilt[:, 15:], clean[:, 15:])


@by_form
def test_a_wrong_scale_is_found(form: str) -> None:
    """The check can fail: what one head's scale does not explain is an error."""
    tactic, problem = registry.tactic("attention", "torch_splits4"), posed(form, 6, 2, 40, SHAPES["grouped"])
    case = check.prepare(problem, CPU, 1)
    spoilt = {name: value.clone() for name, value in case.ins.items() if name == "v_cache"}
    scales = spoilt["v_cache"][..., -8:].view(torch.float32)
    scales.copy_(scales.flip(-1))
    wrong = check.check_case(tactic, dataclasses.replace(case, ins={**case.ins, **spoilt}))
    assert "exceeds" in str(wrong.reason)


@by_form
def test_a_narrow_cache_is_cheaper_and_misfits_are_refused(form: str) -> None:
    contract, shape = registry.contract("attention"), Shape(heads=4, kv_heads=2, head_dim=8)
    cost = contract.cost(posed(form, 8, 8, 100, shape))
    row = 2 * 16 if form == "fp16" else 16 + 8
    assert cost.bytes == 2 * 8 * 100 * row + 4 * 2 * 8 * 32
    right = posed(form, 1, 1, 8, shape)
    wrong = dataclasses.replace(right, axes={**right.axes, "cache_width": 16})
    for tactic in TACTICS:
        assert tactic.why_not(right, CPU) is None
        assert f"the cache's rows are 16 wide; 2 heads of 8 as {form} take {row}" in str(tactic.why_not(wrong, CPU))


def test_codes_are_those_of_the_rounded_values() -> None:
    """What is written is made of keys in the compute dtype, as they come out of the op before."""
    k = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coded(k.bfloat16(), 2, "int8"), coded(k.bfloat16().float(), 2, "int8"))
    assert not torch.equal(coded(k.bfloat16(), 2, "int8"), coded(k, 2, "int8"))
