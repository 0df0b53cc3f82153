"""Paged attention: right against torch's dense attention in fp64, and bit for bit the same in whatever company."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops import check, registry
from allotrope.ops.attention import planned
from allotrope.ops.attention.reference import Request, assemble
from allotrope.ops.attention.splits import groups
from allotrope.ops.contract import Problem

CPU = Device("cpu", "test", "x86_64", 2, 1 << 34)
ON_CUDA = ("torch_flash", "torch_masked")
TORCH = [tactic for tactic in registry.tactics("attention") if tactic.name.startswith("torch")]
TACTICS = [tactic for tactic in TORCH if tactic.name not in ON_CUDA]  # the core's own: tests/test_native_ops.py
EXACT = [tactic for tactic in TACTICS if tactic.name.startswith(("torch_splits", "torch_planned"))]
by_name = pytest.mark.parametrize("tactic", TACTICS, ids=lambda tactic: tactic.name)
by_exact_name = pytest.mark.parametrize("tactic", EXACT, ids=lambda tactic: tactic.name)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch on one thread, or on as many as the test says."""
    before = torch.get_num_threads()
    wanted = getattr(request, "param", 1)
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Shape:
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 16
    window: int = 0
    page_size: int = 16
    dtype: torch.dtype = torch.float32

    @property
    def params(self) -> dict[str, Any]:
        names = ("heads", "kv_heads", "head_dim", "window")
        return {name: getattr(self, name) for name in names} | {"scale": self.head_dim**-0.5}

    def sequence(self, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a whole sequence."""
        random = torch.Generator().manual_seed(seed)
        widths = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = (torch.randn(length, heads * self.head_dim, generator=random).to(self.dtype) for heads in widths)
        return q, k, v


SHAPES = {
    "mha": Shape(),
    "gqa": Shape(heads=6, kv_heads=2, head_dim=24, page_size=5),
    "mqa": Shape(heads=5, kv_heads=1, head_dim=64, page_size=32),
    "window": Shape(heads=4, kv_heads=2, window=37),
    "narrow": Shape(heads=3, kv_heads=3, head_dim=4, window=3, page_size=1),
    "one": Shape(heads=1, kv_heads=1, head_dim=8, window=1),
    "bf16": Shape(heads=14, kv_heads=2, dtype=torch.bfloat16),
}
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
# on two threads a library may split a single product; odd groups of heads are where it would show
by_shape_and_threads = pytest.mark.parametrize(
    ("shape", "threads"),
    [*((name, 1) for name in SHAPES), ("mqa", 2), ("gqa", 2)],
    indirect=["threads"],
)


def attend(tactic: Any, shape: Shape, requests: Sequence[Request], seed: int = 0) -> list[Tensor]:
    """Each request's result; pages and poison lie anew for each seed."""
    ins = assemble(requests, shape.page_size, torch.Generator().manual_seed(seed))
    out = torch.full_like(ins["q"], torch.nan)
    tactic.run({"out": out}, ins, shape.params, None)
    return list(out.split([len(request.q) for request in requests]))


def part(sequence: tuple[Tensor, Tensor, Tensor], first: int, stop: int) -> Request:
    """Positions first..stop of a sequence, with the keys that have been computed by then."""
    q, k, v = sequence
    return Request(k[:stop], v[:stop], q[first:stop], first)


def dense(shape: Shape, sequence: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Torch's own attention in fp64, with the whole mask spelt out."""
    q, k, v = (value.double().view(len(value), -1, shape.head_dim).transpose(0, 1) for value in sequence)
    k, v = (value.repeat_interleave(shape.heads // shape.kv_heads, dim=0) for value in (k, v))
    at = torch.arange(q.shape[1])
    seen = at[None, :] <= at[:, None]
    if shape.window:
        seen &= at[None, :] > at[:, None] - shape.window
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1).flatten(1)


@by_name
@by_shape
def test_it_equals_dense_attention(tactic: Any, shape: Shape) -> None:
    """In fp64 where possible: a wrong mask, head or page is an error of order one, rounding is far below."""
    lengths = (300, 1, 17, 128, 129)
    sequences = [shape.sequence(length, seed) for seed, length in enumerate(lengths)]
    firsts = (260, 0, 16, 0, 100)
    parts = [part(s, first, length) for s, first, length in zip(sequences, firsts, lengths, strict=True)]
    tolerance = 2e-2 if shape.dtype == torch.bfloat16 else 2e-6
    for result, sequence, first in zip(attend(tactic, shape, parts), sequences, firsts, strict=True):
        assert (result.double() - dense(shape, sequence)[first:]).abs().max() < tolerance


@by_exact_name
@by_shape_and_threads
def test_bits_do_not_depend_on_the_chunking(tactic: Any, shape: str, threads: int) -> None:
    given, length = SHAPES[shape], 150
    sequence = given.sequence(length, seed=3)
    whole = attend(tactic, given, [part(sequence, 0, length)])[0]
    for chunk in (1, 7, 16, 149):
        for first in range(0, length, 11 if chunk == 1 else chunk):
            stop = min(first + chunk, length)
            result = attend(tactic, given, [part(sequence, first, stop)], seed=first)[0]
            assert torch.equal(result, whole[first:stop]), (chunk, first)


@by_exact_name
@by_shape_and_threads
def test_bits_do_not_depend_on_the_batch_or_the_slot(tactic: Any, shape: str, threads: int) -> None:
    given, random = SHAPES[shape], np.random.default_rng(4)
    lengths = [*map(int, random.integers(1, 200, 31)), 300]
    sequences = [given.sequence(length, seed) for seed, length in enumerate(lengths)]
    firsts = [int(random.integers(length)) if i % 3 == 0 else length - 1 for i, length in enumerate(lengths)]
    parts = [part(s, first, len(s[0])) for s, first in zip(sequences, firsts, strict=True)]
    alone = [attend(tactic, given, [request])[0] for request in parts]
    for size in (2, 5, 32):
        chosen = random.permutation(32)[:size]
        together = attend(tactic, given, [parts[i] for i in chosen], seed=size)
        for i, result in zip(chosen, together, strict=True):
            assert torch.equal(result, alone[i]), (size, i)


@by_exact_name
def test_neighbours_full_of_nan_change_nothing(tactic: Any) -> None:
    shape = SHAPES["gqa"]
    mine = part(shape.sequence(140, seed=1), 100, 140)
    evil = part(tuple(torch.full_like(value, torch.nan) for value in shape.sequence(60, 2)), 3, 60)  # type: ignore[arg-type]
    infinite = part(tuple(torch.full_like(value, torch.inf) for value in shape.sequence(9, 3)), 8, 9)  # type: ignore[arg-type]
    alone = attend(tactic, shape, [mine])[0]
    assert not alone.isnan().any()
    assert torch.equal(attend(tactic, shape, [evil, mine, infinite])[1], alone)
    assert attend(tactic, shape, [evil, mine, infinite])[0].isnan().all()


@by_name
def test_keys_out_of_the_window_are_not_read(tactic: Any) -> None:
    shape = SHAPES["window"]
    q, k, v = shape.sequence(200, seed=9)
    clean = attend(tactic, shape, [part((q, k, v), 150, 200)])[0]
    gone = 150 - shape.window + 1
    k[:gone] = v[:gone] = torch.nan
    assert torch.equal(attend(tactic, shape, [part((q, k, v), 150, 200)])[0], clean)


@by_shape
@pytest.mark.parametrize("spare", [0, 7])
def test_planned_on_the_device_the_bits_are_the_same(shape: Shape, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever products the items come, and however much wider the page table is than anyone's context."""
    sequences = [shape.sequence(length, length) for length in (300, 20, 140, 1)]
    parts = [part(s, first, len(s[0])) for s, first in zip(sequences, (299, 5, 137, 0), strict=True)]
    ins = assemble(parts, shape.page_size, torch.Generator().manual_seed(5))
    out = torch.full_like(ins["q"], torch.nan)
    registry.tactic("attention", "torch_splits4").run({"out": out}, ins, shape.params, None)
    ins["page_table"], ins["spans"] = F.pad(ins["page_table"], (0, spare), value=-1), None
    for most, whole in ((1000, False), (7, True)):
        plan = partial(planned.plan, most=most, whole=whole)
        monkeypatch.setattr(
            "allotrope.ops.attention.planned.plan",
            lambda *args, plan=plan, most, whole, **kwargs: plan(*args, **kwargs),
        )
        again = torch.full_like(out, torch.nan)
        registry.tactic("attention", "torch_planned4").run({"out": again}, {**ins, "memo": {}}, shape.params, None)
        assert torch.equal(again, out)
        monkeypatch.undo()


@pytest.mark.parametrize("tactic", [t for t in EXACT if not t.capturable], ids=lambda tactic: tactic.name)
def test_padding_a_group_changes_nothing(tactic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA products have a fixed number of items, the last padded: the same arithmetic, tried on the CPU."""
    shape = SHAPES["gqa"]
    sequences = [shape.sequence(length, length) for length in (300, 20, 140)]
    parts = [part(s, 5, len(s[0])) for s in sequences]
    plain = attend(tactic, shape, parts)
    seen = []

    def padded(*args: Any, **kwargs: Any) -> Any:
        found = list(groups(*args, **{**kwargs, "most": 7, "whole": True}))
        seen.extend(len(items.tiles) for group in found for items in group.parts)
        return iter(found)

    monkeypatch.setattr("allotrope.ops.attention.splits.groups", padded)
    for got, expected in zip(attend(tactic, shape, parts), plain, strict=True):
        assert torch.equal(got, expected)
    assert set(seen) == {7}


@pytest.mark.parametrize(("first", "stop"), [(0, 50), (13, 14), (37, 50), (8, 16)])
def test_a_query_always_stands_in_the_same_place(first: int, stop: int) -> None:
    """Whichever chunk brings position p: row p % 4 of its tile, against splits that begin at multiples of 8."""
    spans = assemble([part(SHAPES["one"].sequence(stop, 0), first, stop)], 64, torch.Generator().manual_seed(0))[
        "spans"
    ]
    (group,) = groups(spans, queries=4, keys=8, window=0, page_size=64, most=1000, whole=False)
    places = dict(zip(group.out_rows + first, group.live, strict=True))
    assert sorted(places) == list(range(first, stop))
    assert all(place % 4 == position % 4 for position, place in places.items())
    offsets = group.parts[0].slots - spans.pages[0, 0] * 64
    for tile, keys, hidden in zip(group.parts[0].tiles, offsets, group.parts[0].hidden, strict=True):
        assert keys[0] % 8 == 0
        seen = [position for position, place in places.items() if place // 4 == tile]
        for position in seen:
            visible = keys[~hidden[position % 4]]
            assert visible.tolist() == [key for key in range(keys[0], keys[0] + 8) if key <= position]


def problem(rows: int, requests: int, context: int, shape: Shape, dtype: str = "fp32") -> Problem:
    axes = {
        "rows": rows,
        "requests": requests,
        "context": context,
        "page_size": shape.page_size,
        "width": shape.heads * shape.head_dim,
        "cache_width": shape.kv_heads * shape.head_dim,
    }
    return Problem("attention", axes, shape.params, dtype)


PROBLEMS = [
    problem(1, 1, 1, SHAPES["mha"]),
    problem(8, 8, 200, SHAPES["gqa"]),
    problem(90, 3, 70, SHAPES["mqa"]),
    problem(130, 1, 130, SHAPES["mha"]),
    problem(60, 4, 150, SHAPES["window"]),
]


@by_name
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_tactics_pass_the_numerics_policy(tactic: Any, dtype: str) -> None:
    for given in PROBLEMS:
        assert check.check(tactic, dataclasses.replace(given, dtype=dtype), CPU, seed=1).reason is None


@by_exact_name
def test_row_classes_are_proven(tactic: Any) -> None:
    for given in (problem(1, 1, 300, SHAPES["mha"]), problem(4, 2, 90, SHAPES["window"], "bf16")):
        others = [other for other in EXACT if other.row_class(given, CPU) == tactic.row_class(given, CPU)]
        assert tactic in others and len(others) == (2 if tactic.queries == 4 else 1)
        assert check.check_rows(tactic, given, CPU, seed=3, among=others) is None


def test_the_proof_of_rows_can_fail() -> None:
    """Torch's fused attention claims no row class, and rightly."""
    fused = registry.tactic("attention", "torch_sdpa")
    given = problem(1, 1, 300, SHAPES["mha"])
    assert fused.row_class(given, CPU) is None
    assert "other bits" in str(check.check_rows(fused, given, CPU, seed=3))


@dataclasses.dataclass(frozen=True)
class Planted:
    """A tactic that is right but for one mistake in what it is given."""

    good: Any
    spoil: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Mapping[str, Any], Mapping[str, Any]]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.good, name)

    def run(self, out: Any, ins: Any, params: Any, workspace: Any) -> None:
        self.good.run(out, *self.spoil(ins, params), workspace)


def permuted_heads(ins: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    """Query head h over key head h % kv_heads."""
    heads, kv_heads = params["heads"], params["kv_heads"]
    order = torch.arange(heads).view(-1, kv_heads).T.reshape(-1)
    q = ins["q"].reshape(len(ins["q"]), heads, -1)[:, order].reshape(ins["q"].shape)
    return {**ins, "q": q}, params


def one_late(ins: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    """Each query sees one key less, where it has more than one."""
    spans, first = ins["spans"], (ins["row_first"] - 1).clamp(min=0)
    moved = dataclasses.replace(spans, first=np.maximum(spans.first - 1, 0), memo={})
    return {**ins, "spans": moved, "row_first": first}, params


def wide_window(ins: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    return ins, {**params, "window": params["window"] + 1}


@by_name
@pytest.mark.parametrize(
    ("spoil", "shape"), [(permuted_heads, "gqa"), (one_late, "mha"), (wide_window, "window")], ids=lambda x: str(x)[:20]
)
def test_planted_mistakes_are_found(tactic: Any, spoil: Any, shape: str) -> None:
    given = problem(12, 4, 60, SHAPES[shape])
    assert check.check(tactic, given, CPU).ok
    result = check.check(Planted(tactic, spoil), given, CPU)  # type: ignore[arg-type]
    assert not result.ok
    assert "exceeds" in str(result.reason) or "NaN" in str(result.reason)


def test_it_says_why_not() -> None:
    good = problem(1, 1, 8, SHAPES["gqa"])
    for tactic in TACTICS:
        assert tactic.why_not(good, CPU) is None
        assert tactic.capturable == (tactic.name == "torch_planned4")
        uneven = dataclasses.replace(good, params={**good.params, "kv_heads": 4})
        assert "6 heads cannot share 4 key heads evenly" in str(tactic.why_not(uneven, CPU))
        narrow = dataclasses.replace(good, axes={**good.axes, "width": 100})
        assert "do not make 100 channels" in str(tactic.why_not(narrow, CPU))
        assert "not on tpu" in str(tactic.why_not(good, dataclasses.replace(CPU, kind="tpu")))


def test_the_cost_is_what_must_be_read() -> None:
    cost = registry.contract("attention").cost
    decode = cost(problem(8, 8, 100, Shape(heads=4, kv_heads=2, head_dim=8)))
    assert decode.bytes == 4 * (2 * 8 * 100 * 16 + 2 * 8 * 32)
    assert decode.flops == 4 * 8 * 100 * 32
    prefill = cost(problem(100, 1, 100, Shape(heads=4, kv_heads=2, head_dim=8)))
    assert prefill.flops == 4 * sum(range(1, 101)) * 32
    windowed = cost(problem(8, 8, 100, Shape(heads=4, kv_heads=2, head_dim=8, window=10)))
    assert windowed.flops == decode.flops / 10
