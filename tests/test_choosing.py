"""What the builder's options change in a plan, and what it knows from earlier builds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.artifact.plan import Plan
from allotrope.build import build, builder, timings, tune
from allotrope.build.options import BuildOptions
from allotrope.build.tasks import Task
from allotrope.build.timings import Timings
from allotrope.build.tune import Tuner
from allotrope.errors import AllotropeError
from allotrope.hw.fingerprint import Fingerprint, fingerprint
from allotrope.models.model import open_model
from allotrope.ops import registry
from allotrope.ops.contract import Problem
from allotrope.ops.functional import FunctionTactic
from tests.engines import CPU
from tests.test_builder import OPT, QUICK, choice, shape

FAST: dict[str, Any] = QUICK | {"tune": "fast"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOTROPE_CACHE", str(tmp_path / "cache"))


def without_choices(plan: Plan) -> Plan:
    """The plan with its tactics and packings, which tuning may choose, taken out."""
    calls = tuple(replace(call, tactics=()) for call in plan.calls)
    weights = {name: replace(weight, packing="rows") for name, weight in plan.weights.items()}
    return replace(plan, calls=calls, weights=weights)


def test_untuned_differs_from_tuned_in_nothing_but_choices(tmp_path: Path) -> None:
    tuned = build(shape(tmp_path), tmp_path / "fast", **FAST | {"without": "qkv,gate_up"}).manifest
    off = build(shape(tmp_path), tmp_path / "off", **QUICK | {"without": "qkv,gate_up"}).manifest
    assert without_choices(off.plan) == without_choices(tuned.plan)
    for entry in off.evidence["choices"]:
        [bucket] = entry["buckets"]
        refused = {found["tactic"] for found in bucket["refused"]}
        unproven = {found["tactic"] for found in bucket["runners_up"] if found["row_class"] is None}
        left = [t.name for t in registry.tactics(entry["op"]) if t.name not in refused | unproven]
        assert (bucket["tactic"], bucket["seconds"], entry["by"]) == (left[0], None, "listing order")
    assert off.evidence["tuning"]["timed"] == off.evidence["tuning"]["reused"] == 0


def test_another_fingerprint_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref, counts = shape(tmp_path, OPT), []
    known: dict[str, str] = {}

    def described(device: Any, isa: str | None) -> Fingerprint:
        facts = fingerprint(device, isa)
        return replace(facts, soft={**facts.soft, **known})

    monkeypatch.setattr(timings, "fingerprint", described)
    for name, version in (("one", "1"), ("two", "1"), ("three", "2"), ("four", "1")):
        known["some library"] = version
        tuning = build(ref, tmp_path / name, **FAST).manifest.evidence["tuning"]
        counts.append((tuning["timed"], tuning["reused"]))
    first, again, other, back = counts
    assert first[0] > 10 and first[1] == 0
    assert again == back == (0, first[0])
    assert other == first


def test_a_random_shape_has_the_tokens_of_its_tokenizer(tmp_path: Path) -> None:
    """Whatever the config says of the real model's: there is no other tokenizer than bytes."""
    from allotrope import tokenizers

    config = OPT | {"bos_token_id": 0, "eos_token_id": 5, "pad_token_id": 1, "vocab_size": 300}
    ref = shape(tmp_path, config)
    built = build(ref, tmp_path / "e", **QUICK).manifest
    assert dict(built.generation) == open_model(ref).generation
    tokenizer = tokenizers.load(tmp_path / "e" / "tokenizer", 300)
    named = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_ids": list(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
    }
    assert {name: built.generation[name] for name in named} == named


def test_the_evidence_says_how_a_row_class_was_lost(tmp_path: Path) -> None:
    found = choice(build(shape(tmp_path), tmp_path / "e", **QUICK).manifest.evidence, "linear")
    [bucket] = found["buckets"]
    assert re.fullmatch(r"torch_tile\d+", bucket["tactic"]) and found["row_class"] == bucket["tactic"]
    assert {entry["tactic"] for entry in bucket["runners_up"] if entry["row_class"] is None} >= {"torch_mm"}


def test_a_tactic_serves_every_row_count_of_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried at one row count, it is asked about the fewest and the most that a step may bring, too."""
    few = FunctionTactic(
        "add",
        "torch_few",
        lambda out, ins, params, workspace: {"out": torch.add(ins["a"], ins["b"])},
        refuses=lambda problem, device: "it takes 2 to 8 rows" if not 2 <= problem.axes["rows"] <= 8 else None,
    )
    monkeypatch.setattr(registry, "tactics", lambda op: (few,))
    tuner = Tuner(CPU, BuildOptions(device="cpu", tune="off"), Timings(tmp_path / "none"))

    def refused(*buckets: tuple[int | None, int]) -> list[bool]:
        problems = tuple(Problem("add", {"rows": tried, "width": 16}, {}, "fp32") for _, tried in buckets)
        found = tuner.trials(Task("add", buckets, problems, ("sum",), {}))
        return [bucket[0].refusal == "it takes 2 to 8 rows" for bucket in found]

    assert refused((1, 1), (8, 4), (None, 8)) == [True, False, True]
    assert refused((8, 4), (64, 8)) == [True, True]


def test_parts_are_added_to_the_reference_plan(tmp_path: Path) -> None:
    """`plus`: a fusion, an op by its own tactics, one tactic; all else stays with its reference."""
    bare = QUICK | {"plan": "reference"}
    both = ("qkv", "residual")  # the second, which saves launches, because it is asked for by name
    fused = build(shape(tmp_path), tmp_path / "fused", **bare | {"plus": both}).manifest
    assert fused.plan.fusions == both
    assert {name for call in fused.plan.calls for _, name in call.tactics} == {"reference"}
    one = build(shape(tmp_path), tmp_path / "one", **bare | {"plus": ("attention", "linear/torch_tile8")}).manifest
    used = {call.op: {name for _, name in call.tactics} for call in one.plan.calls}
    assert used.pop("attention") != {"reference"} and used.pop("linear") == {"torch_tile8"}
    assert set(map(tuple, used.values())) == {("reference",)} and one.plan.fusions == ()
    assert one.evidence["checks"]["whole_model"]["ok"]


def test_an_op_is_left_to_its_reference(tmp_path: Path) -> None:
    whole = build(shape(tmp_path), tmp_path / "whole", **QUICK).manifest
    less = build(shape(tmp_path), tmp_path / "less", **QUICK | {"without": "attention"}).manifest
    used = {call.op: {name for _, name in call.tactics} for call in less.plan.calls}
    assert used.pop("attention") == {"reference"}
    assert used == {c.op: {n for _, n in c.tactics} for c in whole.plan.calls if c.op != "attention"}
    assert less.plan.fusions == whole.plan.fusions


def test_what_cannot_be_added_is_said(tmp_path: Path) -> None:
    for options, problem in (
        ({"plan": "reference", "plus": "qk_rotary"}, "fusion qk_rotary cannot be added: .*no neighbouring columns"),
        ({"plus": "qkv"}, "the plan is not the reference"),
        ({"plan": "reference", "plus": "qkw"}, "no part 'qkw' to build with"),
    ):
        with pytest.raises(AllotropeError, match=problem):
            build(shape(tmp_path), tmp_path / "none", **QUICK | options)


def test_builds_that_share_what_was_checked_choose_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one build has checked the next does not check again, and comes to the same plan."""
    options, checked = BuildOptions.of(**QUICK), dict[Any, Any]()
    one = builder.build(shape(tmp_path), tmp_path / "one", options, checked=checked)
    known = dict(checked)
    assert known
    monkeypatch.setattr(tune, "_checked", lambda tactic, case: pytest.fail(f"{tactic.name} was checked again"))
    other = builder.build(shape(tmp_path), tmp_path / "other", options, checked=checked)
    assert other.manifest.plan == one.manifest.plan and checked == known
