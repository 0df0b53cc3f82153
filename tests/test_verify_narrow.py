"""`verify` of quantised engines: whether one computes what its own weights say, and what these cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.engine import open_engine
from allotrope.build import build
from allotrope.cli import main
from allotrope.models.model import open_model
from allotrope.verify.effective import Effective, Stored
from allotrope.verify.original import loaders
from allotrope.verify.verdict import CLOSE, DEGRADED, IDENTICAL, WITHIN
from tests.narrow_engines import ALL, CHEAP, NUMERIC, Narrow, asked, moved
from tests.narrow_kit import QUICK
from tests.quantised_folder import quantised
from tests.test_quantised_models import STORED
from tests.tiny import FAMILIES
from tests.verifying import CPU, Forge, spoil, with_call

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = ["blocks.0.*=int8", "blocks.1.*=int4", "blocks.2.*=fp8", "blocks.2.attn.v=wide", "blocks.2.mlp.up=fp16"]


# The two answers


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, "fp32") for kind in FAMILIES),
        *(pytest.param(kind, "bf16", marks=() if kind in ("gpt2", "llama") else pytest.mark.slow) for kind in FAMILIES),
    ],
)
def test_every_family_computes_what_its_weights_say(narrow: Narrow, kind: str, dtype: str) -> None:
    mixed = MIXED if dtype == "fp32" else MIXED[:-1]
    found = asked(narrow(kind, dtype, keep=mixed)).findings
    assert found.implementation == (IDENTICAL if dtype == "fp32" else WITHIN), found.located
    assert found.located is None and found.cost is not None
    assert found.verdict == found.cost.word
    assert found.logits is not None and found.logits.mean_kl < found.cost.figures.mean_kl


WEIGHTS: tuple[dict[str, Any], ...] = (
    {"weights": "int8"},
    {"weights": "int8", "group_size": 32},
    {"weights": "int4"},
    {"weights": "int4", "asymmetric": True},
    {"weights": "fp8"},
    {"weights": "fp16"},
    {"weights": "bf16"},
)


@pytest.mark.parametrize("options", WEIGHTS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_format(narrow: Narrow, options: dict[str, Any]) -> None:
    found = asked(narrow(**options)).findings
    assert found.implementation == IDENTICAL and found.cost is not None and found.formats
    cost, floor = found.cost.figures.mean_kl, found.cost.figures.floor["mean_kl"]
    assert cost > 100 * floor, "it is another model than the original"
    assert (found.cost.word == CLOSE) is (options["weights"] in ("fp16", "bf16"))


def test_eight_bits_cost_less_than_four(narrow: Narrow) -> None:
    found = [asked(narrow(weights=name), ("logits",)).findings.cost for name in ("fp16", "int8", "int4")]
    costs = [cost.figures.mean_kl for cost in found if cost is not None]
    assert costs == sorted(costs) and len(set(costs)) == 3


def test_what_an_engine_means_lies_in_the_original_as_the_checkpoint_does(narrow: Narrow) -> None:
    """Where nothing is quantised, the weights put together from slots are the checkpoint's own, to the bit."""
    for kind in FAMILIES:
        engine = open_engine(narrow(kind, keep=MIXED), device=CPU)
        model = open_model(engine.manifest.source["path"])
        theirs, ours = loaders(model), Effective(Stored(engine), model).loaders("fp64")
        assert theirs.keys() == ours.keys()
        differing = {name for name in theirs if not torch.equal(theirs[name]().double(), ours[name]())}
        assert 0 < len(differing) < len(theirs)
        assert all(ours[name]().shape == theirs[name]().shape for name in theirs)
        assert not any("norm" in name or "ln_" in name or "embed" in name or "wte" in name for name in differing)


@pytest.mark.parametrize(("kind", "case"), (("qwen", "gptq-order"), ("llama", "awq"), ("gpt2", "int8-acts")))
def test_codes_that_were_the_checkpoints_cost_nothing(tmp_path: Path, kind: str, case: str) -> None:
    """The original is then the wide model that its codes stand for; only what rounds its inputs costs."""
    source, out = quantised(kind, tmp_path / "ckpt", STORED[case]), tmp_path / "engine"
    build(str(source), out, **QUICK)
    found = asked(out).findings
    assert found.implementation == IDENTICAL and found.cost is not None, found.located
    assert (found.cost.word == WITHIN) is (STORED[case].activations is None)
    if case == "gptq-order":
        bad = Forge(tmp_path / "forge").planted(out, slots={"blocks.1.attn.o.order": np.flip})
        located = asked(bad, ("preflight",)).findings.located
        assert located is not None and located.path == "blocks.1.attn.o"


# Planted faults


def flipped(array: Any) -> Any:
    """One bit of one code."""
    changed = np.array(array)
    changed[3, 5] ^= 1
    return changed


def at(value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        changed = np.array(array)
        changed[2, 0] = value
        return changed

    return change


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Callable[[Any], Any]], str, str]] = {
    "code": ({"weights": "int8"}, {"blocks.1.attn.k.codes": flipped}, "blocks.1.attn.k", "the build measured"),
    "half a byte": ({"weights": "int4"}, {"blocks.1.mlp.down.codes": flipped}, "blocks.1.mlp.down", "build measured"),
    "scale": ({"weights": "int8"}, {"blocks.0.attn.o.scales": at(0.5)}, "blocks.0.attn.o", "the build measured"),
    "NaN": (
        {"weights": "int4"},
        {"blocks.0.mlp.up.scales": at(np.nan)},
        "blocks.0.mlp.up",
        "stand for NaN or infinity, first in row 2",
    ),
    "zero scale": ({"weights": "int4"}, {"blocks.0.mlp.up.scales": at(0.0)}, "blocks.0.mlp.up", "build measured"),
    "zeros": (
        {"weights": "int4", "asymmetric": True},
        {"blocks.2.attn.q.zeros": moved},
        "blocks.2.attn.q",
        "the build measured",
    ),
    "wide": (
        {"weights": "int8"},
        {"blocks.1.mlp.norm.weight": lambda w: w * 1.01},
        "blocks.1.mlp.norm",
        "differs from",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_weight_is_found_and_named(narrow: Narrow, forge: Forge, name: str) -> None:
    """The engine still computes what its weights say, so only the preflight can tell."""
    options, slots, path, detail = FAULTS[name]
    result = asked(forge.planted(narrow(**options), slots=slots), ("preflight",))
    located = result.findings.located
    assert result.findings.verdict == DEGRADED and located is not None
    assert located.path == path and detail in located.detail, located


def test_another_format_in_the_plan_is_found_and_named(narrow: Narrow, forge: Forge) -> None:
    change = with_call("blocks.1.attn.o", lambda call: replace(call, params={"format": "fp8"}))
    located = asked(forge.planted(narrow(weights="int8"), plan=change), ("preflight",)).findings.located
    assert located is not None and (located.path, located.op) == ("blocks.1.attn.o", "linear_codes")


def test_an_engine_that_says_nothing_of_its_errors_is_not_believed(narrow: Narrow, forge: Forge) -> None:
    path = narrow(weights="int8")
    evidence = {**open_engine(path, device=CPU).manifest.evidence, "quantisation": {}}
    found = asked(forge.described(path, evidence=evidence), ("preflight",)).findings
    assert found.located is not None and "says nothing of the error of blocks.0.attn." in found.located.detail


def test_a_dropped_bias_is_found_though_the_engine_means_it(narrow: Narrow, forge: Forge) -> None:
    def bare(call: Any) -> Any:
        return replace(call, ins={name: slot for name, slot in call.ins.items() if name != "bias"})

    bad = forge.planted(narrow("gpt2", weights="int8"), plan=with_call("blocks.1.mlp.up", bare))
    for levels in (ALL, NUMERIC):
        found = asked(bad, levels).findings
        assert found.located is not None and found.located.path == "blocks.1.mlp.up"
        assert found.verdict == found.implementation == DEGRADED


def coarse(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    """Scales as if they had been rounded once more."""
    tactic.run(out, {**ins, "scales": ins["scales"].bfloat16().to(ins["scales"].dtype)}, params, workspace)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_kernel_that_is_wrong_is_named(narrow: Narrow, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """The weights are right: only the walk can tell. What it costs would pass for a format's."""
    path = narrow(dtype=dtype, **CHEAP)
    spoil(monkeypatch, "linear_codes", coarse)
    found = asked(path).findings
    assert found.preflight is not None and found.preflight.ok
    assert found.located is not None and found.located.op == "linear_codes"
    assert found.verdict == DEGRADED and found.implementation in (CLOSE, DEGRADED)
    assert found.cost is not None and found.cost.word in (CLOSE, WITHIN)


# What is printed and kept


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Mapping[str, Any], str]:
    code = main(["verify", *arguments, "--json", "--new-tokens", "4"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if captured.out else {}, captured.err


def test_both_answers_are_printed_and_kept_apart(narrow: Narrow, capsys: pytest.CaptureFixture[str]) -> None:
    path = narrow(**CHEAP)
    capsys.readouterr()  # what building it said
    code, found, err = command(capsys, str(path), "--attribute")
    assert code == 0 and found["passed"] and found["required"] == CLOSE
    assert found["verdict"] == found["cost"]["word"] == CLOSE and found["implementation"] == IDENTICAL
    assert {"mean_kl", "max_kl", "kl_percentiles", "same_top1", "perplexity_ratio", "floor"} <= found["cost"].keys()
    assert found["formats"] == ["7 weights int8"] and found["levels"]["layers"]["ok"]
    share = found["attribution"]["modules"][0]
    assert {"module", "format", "alone", "saved", "share", "extra_bytes", "saved_per_mib"} == share.keys()
    assert json.loads((path / "verify.json").read_text())["cost"] == found["cost"]
    lines = [line for line in err.splitlines() if "Writing" not in line]
    assert all(len(line) <= 80 for line in lines), [line for line in lines if len(line) > 80]
    assert lines[0] == "Verdict: close" and lines[1] == "  quantised: 7 weights int8; computed in fp32"
    assert lines[2].startswith("  implementation: identical; ") and any(
        line.startswith("  cost: close; ") for line in lines
    )
    assert any(line.startswith("  allotrope build … --keep 'blocks.") for line in lines)


def test_requirements(narrow: Narrow, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(narrow(weights="int4"))
    code, found, _ = command(capsys, path)
    assert code == 3 and found["verdict"] == DEGRADED and found["implementation"] == IDENTICAL
    assert command(capsys, path, "--require", "degraded")[0] == 0
    assert command(capsys, str(narrow(**CHEAP)), "--require", "within rounding")[0] == 3
    code, _, err = command(capsys, path, "--level", "preflight,layers,tokens", "--require", "close")
    assert code == 2 and "--require needs the level logits: it says what the formats cost" in err
    code, found, err = command(capsys, path, "--level", "preflight,layers,tokens")
    assert code == 0 and found["verdict"] is None and found["implementation"] == IDENTICAL
    assert err.startswith("Nothing wrong was found; a verdict needs the levels")
