"""Every native tactic but linear layers: against its reference, with several threads, by every instruction set."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope import native
from allotrope.errors import UsageError
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Problem
from allotrope.ops.kv_rows import FORMS, row_width
from allotrope.ops.native import NativeTactic, describe
from allotrope.ops.sample import ADJUSTMENTS
from tests.engines import CPU
from tests.native_kit import needs_core

pytestmark = needs_core

ROTARY = (
    {"scaling": "none"},
    {"scaling": "linear", "factor": 2.0},
    {"scaling": "llama3", "factor": 8.0, "original_len": 256},
    {"scaling": "dynamic", "factor": 2.0, "original_len": 64},
    {"scaling": "qwen_ntk", "original_len": 64},
)
HEADS = ((4, 4, 64, 0), (6, 1, 20, 0), (8, 2, 16, 24), (2, 2, 7, 0))  # heads, key heads, channels, window
STEPS = ((1, 1, 300, 16), (5, 5, 40, 4), (70, 3, 150, 16))  # rows, requests, context, page
# Windows that begin on both sides of a split's end, for few queries and for many.
WINDOWED = (((1, 1, 64, 100), (8, 1, 232, 16)), ((4, 2, 24, 100), (12, 1, 234, 16)))


def problems() -> Iterator[Problem]:
    """Odd widths, one row and many."""

    def posed(op: str, axes: dict[str, int], params: dict[str, Any] | None = None, *present: str) -> Problem:
        return Problem(op, axes, params or {}, "fp32", frozenset(present))

    for rows, width in ((1, 7), (5, 129), (70, 1000)):
        axes = {"rows": rows, "width": width}
        yield posed("add", axes)
        for kind in ("gelu", "gelu_tanh", "relu", "silu"):
            yield posed("activation", axes, {"kind": kind})
            yield posed("gated", axes, {"kind": kind})
        for given in ((), ("weight",), ("weight", "bias")):
            yield posed("layernorm", axes, {"eps": 1e-5}, *given)
            yield posed("add_norm", axes, {"norm": "layer", "eps": 1e-5}, *given)
        for given in ((), ("weight",)):
            yield posed("add_norm", axes, {"norm": "rms", "eps": 1e-5}, *given)
            heads = {"rows": rows, "width": 3 * width, "head_width": width}
            yield posed("rmsnorm", heads, {"eps": 1e-6, "heads": 3}, *given)
        yield posed("logn", axes, {"length": 64})
        yield posed("embed", axes | {"vocab": 50})
        yield posed("select_rows", axes | {"tokens": 80})
        yield posed("reorder", axes)
        yield posed("add_positions", axes | {"size": 66}, {"offset": 2})
    for scaling in ROTARY:
        for head_dim, dim in ((8, 8), (80, 20)):
            params = {"heads": 3, "head_dim": head_dim, "dim": dim, "base": 10000.0, **scaling}
            yield posed("rotary", {"rows": 9, "width": 3 * head_dim}, params)
    for form in FORMS:
        for heads, head_dim in ((1, 8), (3, 5)):
            axes = {"rows": 13, "kv_width": heads * head_dim, "pages": 3, "page_size": 8}
            cache = {"cache_width": row_width(form, heads, head_dim)}
            yield posed("kv_write", axes | cache, {"kv": form, "kv_heads": heads})
        for (heads, kv_heads, head_dim, window), step in (*itertools.product(HEADS, STEPS), *WINDOWED):
            params = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5}
            axes = dict(zip(("rows", "requests", "context", "page_size"), step, strict=True))
            axes |= {"width": heads * head_dim, "cache_width": row_width(form, kv_heads, head_dim)}
            yield posed("attention", axes, params | {"window": window, "kv": form})
    for vocab in (5, 1000, 9000):
        yield posed("sample", {"rows": 9, "logits": 12, "vocab": vocab})
        yield posed("sample", {"rows": 9, "logits": 12, "vocab": vocab, "adjustments": 7}, {}, *ADJUSTMENTS)


def tactics(op: str) -> list[NativeTactic]:
    return [tactic for tactic in registry.tactics(op) if isinstance(tactic, NativeTactic)]


@pytest.mark.usefixtures("native_threads")
@pytest.mark.parametrize("problem", list(problems()), ids=lambda problem: problem.key())
def test_right_and_the_same_bits_for_any_number_of_threads(problem: Problem) -> None:
    case = check.prepare(problem, CPU, 3)
    for tactic in tactics(problem.op):
        found = []
        for threads in (1, 2, 3):
            native.set_threads(threads)
            for strided in (True, False):
                result = check.check_case(tactic, case, strided=strided)
                assert result.ok, (threads, strided, result.reason)
                outs = poison.run(tactic, case.contract, problem, CPU, case.ins, strided).outs
                found.append({name: poison.bits(out) for name, out in outs.items()})
        for other in found[1:]:
            assert all(torch.equal(other[name], bits) for name, bits in found[0].items())


ONE_OF_EACH = {problem.op: problem for problem in problems()}


@pytest.mark.usefixtures("native_threads")
@pytest.mark.parametrize("op", [op for op, problem in ONE_OF_EACH.items() if op != "kv_write"])
def test_a_row_has_its_bits_in_any_company(op: str) -> None:
    native.set_threads(2)
    for tactic in tactics(op):
        assert check.check_rows(tactic, ONE_OF_EACH[op], CPU, most=64) is None


@pytest.mark.usefixtures("native_threads")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "window"), HEADS)
def test_a_query_s_bits_are_those_that_it_has_alone(
    form: str, heads: int, kv_heads: int, head_dim: int, window: int
) -> None:
    """Many queries turn their keys, few do not; and tiles begin wherever a chunk of the prompt does."""
    params = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5}
    axes = {"rows": 150, "requests": 1, "context": 190, "page_size": 16, "width": heads * head_dim}
    axes |= {"cache_width": row_width(form, kv_heads, head_dim)}
    problem = Problem("attention", axes, params | {"window": window, "kv": form}, "fp32")
    case = check.prepare(problem, CPU, 3)
    (tactic,) = tactics("attention")
    native.set_threads(2)
    whole = poison.run(tactic, case.contract, problem, CPU, case.ins, False).outs["out"]
    for size in (1, 7, 15, 16, 40, 65):
        for start in range(0, 150, size):
            stop = min(start + size, 150)
            first = case.ins["row_first"] + start
            own = {"q": case.ins["q"][start:stop], "row_starts": torch.tensor([0, stop - start], dtype=torch.int32)}
            part = replace(problem, axes=axes | {"rows": stop - start, "context": int(first) + stop - start})
            ins = {**case.ins, **own, "row_first": first}
            found = poison.run(tactic, case.contract, part, CPU, ins, False).outs["out"]
            assert torch.equal(poison.bits(found), poison.bits(whole[start:stop])), (size, start)


FORCED = """
import sys
from allotrope import native
from allotrope.ops import check
from tests.engines import CPU
from tests.test_native_ops import problems, tactics
assert native.find().isa == sys.argv[1]
native.set_threads(2)
for problem in problems():
    for tactic in tactics(problem.op):
        result = check.check(tactic, problem, CPU)
        assert result.ok, (problem.key(), result.reason)
"""


@pytest.mark.parametrize("isa", sorted(native.find().lacking))
def test_every_instruction_set_that_this_cpu_has(isa: str) -> None:
    if lacks := native.find().lacking[isa]:
        pytest.skip(lacks)
    done = subprocess.run(
        [sys.executable, "-c", FORCED, isa],
        env={**os.environ, "ALLOTROPE_ISA": isa},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_instruction_set_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOTROPE_ISA", "abacus")
    native.find.cache_clear()
    try:
        with pytest.raises(UsageError, match=r"ALLOTROPE_ISA is 'abacus': there are no kernels for abacus; choose"):
            native.find()
    finally:
        monkeypatch.delenv("ALLOTROPE_ISA")
        native.find.cache_clear()


def test_an_older_core_is_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: object())
    native.find.cache_clear()
    try:
        assert native.why_not() == (
            "there is no native core: it is of an older version; make native, or pip install anew"
        )
    finally:
        native.find.cache_clear()


TILES = """
import ctypes
from tests.test_native_linear import EIGHT, able, outcome
[tactic] = able(EIGHT[0])
outcome(tactic, EIGHT[0])
permitted = ctypes.c_uint64()
assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(permitted)) == 0  # arch_prctl, ARCH_GET_XCOMP_PERM
print(permitted.value >> 18 & 1)  # XFEATURE_XTILEDATA
"""


@pytest.mark.skipif(bool(native.find().lacking.get("amx", "none")), reason="this CPU has no AMX")
def test_amx_s_tiles_are_asked_for_by_who_uses_them() -> None:
    """Whoever may use them pays for it in every signal's frame."""
    for isa, granted in (("avx512vnni", "0\n"), ("amx", "1\n")):
        env = {**os.environ, "ALLOTROPE_ISA": isa}
        where = Path(__file__).parents[1]
        assert subprocess.check_output([sys.executable, "-c", TILES], env=env, cwd=where, text=True) == granted


def test_another_dtype_or_device_is_refused_in_words() -> None:
    (tactic,) = tactics("add")
    half = Problem("add", {"rows": 1, "width": 8}, {}, "bf16")
    assert tactic.why_not(half, CPU) == "the native core computes in fp32, not in bf16"


def test_rows_with_gaps_in_them_are_refused() -> None:
    inner = np.zeros((2, 3, 8), np.float32)
    for gaps in (torch.zeros(4, 4).t(), inner[:, :2, :4], inner[:, :, ::2], inner[:, ::2]):
        with pytest.raises(ValueError, match=r"rows must lie dense, and \(\d, \d.*\) lies in steps of"):
            describe(gaps)
    assert describe(inner[:, :2])[1:4] == (2, 16, 96)
    assert describe(inner[..., :4])[1:4] == (6, 4, 32)  # pages, whose rows may lie apart


LUCKY = Problem(
    "attention",
    {"rows": 3, "requests": 3, "context": 256, "page_size": 16, "width": 192, "cache_width": 384},
    {"heads": 6, "kv_heads": 6, "head_dim": 32, "scale": 32**-0.5, "window": 0, "kv": "fp16"},
    "fp32",
)


def test_who_is_refused_by_a_lucky_draw_is_asked_again() -> None:
    """The plain version without its usual error: three more draws say what is usual. What is wrong stays wrong."""
    (tactic,) = tactics("attention")
    case = check.prepare(LUCKY, CPU, 0)
    lucky = replace(case, plain=case.truth)

    class Off(type(tactic)):  # type: ignore[misc]
        """Errs by so much of each number, on every draw."""

        share = 0.0

        def run(self, out: Any, ins: Any, params: Any, workspace: Any = None) -> None:
            super().run(out, ins, params, workspace)
            out["out"] *= 1 + self.share

    off = Off(**{field: getattr(tactic, field) for field in tactic.__dataclass_fields__})

    def refused() -> bool:
        return not check.judge(lucky, poison.run(off, case.contract, LUCKY, CPU, case.ins, True).outs).ok

    while not refused():  # some instruction sets err enough by themselves
        Off.share += 5e-7
        assert Off.share < 1e-5
    assert check.check_case(off, lucky).ok and check.check_case(off, case).ok
    for share in (2e-5, 1e-3):
        Off.share = share
        assert not check.check_case(off, lucky).ok
