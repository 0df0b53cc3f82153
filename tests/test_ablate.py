"""`allotrope ablate`: rows that are true, and what it prints, keeps and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from allotrope import native
from allotrope.ablate import speed
from allotrope.build import cache
from allotrope.cli import main
from allotrope.ops import kv_codes, registry
from allotrope.ops.gated import via_torch
from allotrope.ops.kv_rows import scales_at
from allotrope.ops.kv_write import reference as kv_reference
from allotrope.ops.kv_write import via_torch as kv_torch
from tests.schemas import fits, fits_kept
from tests.verifying import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ("--tune", "off", "--threads", 1, "--rounds", 3, "--io", "8,6")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("llama-grouped", tmp_path_factory.mktemp("ablate") / "model", num_hidden_layers=2)


def ablate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = main(["ablate", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in found["rows"]}


def samples(found: dict[str, Any]) -> Any:
    """What is kept beside the last engine."""
    return json.loads((Path(found["rows"][-1]["engine"]) / "ablate.json").read_text())["samples"]


def test_the_verb(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = (
        "qkv,fusions,residual,tactics,tuning,attention,step,late-stop,weights=bf16,weights=int4,weights=int8,kv=int8"
    )
    code, found, told = ablate(capsys, source, *QUICK, "--parts", parts, "-o", tmp_path / "out")
    assert code == 0
    fits("ablate", found)
    assert fits_kept("ablate", tmp_path / "out") == found
    rows = by_name(found)
    assert list(rows)[:3] == ["all on", "all on, again", "reference"]
    assert rows["without qkv"]["removed"] == ["qkv"] and rows["only qkv"]["added"] == ["qkv"]
    for name in ("all on", "without qkv", "only attention", "with weights=int8"):
        row = rows[name]
        assert row["reason"] is None and row["latency_ms"] > row["prefill_ms"] > 0
        assert row["tokens_per_s"] == pytest.approx(6 / row["latency_ms"] * 1e3)
        assert row["build_seconds"] > 0 and row["peak_memory_bytes"] >= 0
    assert all(
        rows[name]["kl"] < 1e-9 and rows[name]["verdict"] == "within rounding" for name in ("all on", "only qkv")
    )
    assert rows["with weights=int8"]["kl"] > 1e-7 and rows["with kv=int8"]["kv_bytes"] < rows["all on"]["kv_bytes"]
    assert rows["with weights=bf16"]["weights_bytes"] < rows["all on"]["weights_bytes"]
    assert rows["without late-stop"]["engine"] == rows["all on"]["engine"]
    ours, same = (next(Path(rows[name]["engine"]).glob("weights/*")) for name in ("only late-stop", "only attention"))
    assert ours.samefile(same) and not ours.samefile(next(Path(rows["with weights=int8"]["engine"]).glob("weights/*")))
    assert all(rows[name]["same_tokens"] == 1 for name in ("all on, again", "without late-stop"))
    # what cannot be is a row with its reason, and the rest is kept
    if native.why_not() is None:
        assert rows["without residual"]["reason"] is None and rows["without residual"]["removed"] == ["residual"]
        assert rows["without step"]["reason"] is None and rows["without step"]["engine"] == rows["all on"]["engine"]
    else:
        assert "a cpu has none" in rows["without residual"]["reason"]
        assert rows["without step"]["reason"].startswith("no step is captured")
    assert "nothing was timed" in rows["without tuning"]["reason"]
    assert "group size is 32; it must divide the width" in rows["with weights=int4"]["reason"]
    assert {one["what"] for one in found["interactions"]} >= {"each part alone", "each part off"}
    for one in found["interactions"]:
        assert one["whole"] == pytest.approx(one["product"] * one["interaction"])
    assert "with weights=int4: " in told and found["words"] in " ".join(told.split())
    assert max(len(line) for line in told.splitlines() if not line.startswith("every sample: ")) <= 80
    with (tmp_path / "out" / "ablate.csv").open(newline="") as file:
        lines = {row["name"]: row for row in csv.DictReader(file)}
    assert float(lines["only qkv"]["latency_ms"]) == rows["only qkv"]["latency_ms"]
    assert "| without qkv |" in (tmp_path / "out" / "ablate.md").read_text()
    kept = json.loads((tmp_path / "out" / "ablate.json").read_text())
    samples = next(one for one in kept["samples"] if one["name"] == "only qkv")
    assert len(samples["latency_s"]) == 3 == found["rounds"]


def test_a_part_that_slows_things_down_is_found(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tactic that stands first in the listing and takes a while over every call."""
    import dataclasses
    import time

    usual = via_torch.TACTICS[-1]

    def slowly(*given: Any) -> Any:
        time.sleep(10e-3)
        return usual.run(*given)

    dud = dataclasses.replace(usual, name="torch_dud", run=slowly)
    monkeypatch.setattr(via_torch, "TACTICS", (dud, *via_torch.TACTICS))
    monkeypatch.setattr(native, "why_not", lambda *kernels: "this test is of torch's tactics")
    known = (registry.tactics, registry.tactic, registry._tactics_of)
    for one in known:
        one.cache_clear()
    try:
        _, found, _ = ablate(
            capsys,
            source,
            *QUICK,
            "--parts",
            "qkv,gated/torch_dud",
            "--device",
            "cpu",
            "--executor",
            "eager",
            "--rounds",
            5,  # of three, little shows
        )
    finally:
        monkeypatch.undo()
        for one in known:
            one.cache_clear()
    row = by_name(found)["without gated/torch_dud"]
    assert row["reason"] is None, row
    assert row["gain"] < 0.9 and row["more_than_noise"] is True
    assert "Slowing things down: gated/torch_dud (" in found["words"]


def test_a_part_that_costs_quality_is_found(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scales of keys and values a tenth too large: tactic and reference agree, so no check of an op sees it."""
    import torch

    given = (source, *QUICK, "--parts", "kv", "--kv", "int8")
    _, healthy, _ = ablate(capsys, *given, "--cache-dir", tmp_path / "healthy")
    plain = kv_codes.coded

    def leaking(values: torch.Tensor, heads: int, form: str) -> torch.Tensor:
        rows = plain(values, heads, form)
        rows[..., scales_at(heads, values.shape[-1] // heads) :].view(torch.float32).mul_(1.1)
        return rows

    for module in (kv_codes, kv_reference, kv_torch):
        monkeypatch.setattr(module, "coded", leaking)
    _, leaky, _ = ablate(capsys, *given, "--cache-dir", tmp_path / "leaky")
    before, after = by_name(healthy)["all on"], by_name(leaky)["all on"]
    assert before["leaks"] is False and after["leaks"] is True
    assert before["kl"] == pytest.approx(before["kl_expected"], rel=0.2) and after["kl"] > 10 * before["kl"]
    assert by_name(leaky)["without kv"]["kl_cost_interval"][0] > 0
    assert "LEAKING, far more than rounding in its format explains: kv." in leaky["words"]
    assert "LEAKING" not in healthy["words"] and "kv (KL" in healthy["words"]


def test_interrupted(source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third round: rows have the rounds that were whole, and the exit says that it was interrupted."""
    visit, seen = speed.Rounds._visit, list[int]()

    def visited(self: speed.Rounds, runner: speed.Runner, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt
        seen.append(number)
        visit(self, runner, number)

    monkeypatch.setattr(speed.Rounds, "_visit", visited)
    code, found, _ = ablate(capsys, source, *QUICK, "--parts", "qkv")
    assert code == 130 and found["interrupted"] is True and found["rounds"] == 2
    assert by_name(found)["without qkv"]["latency_ms"] > 0
    fits("ablate", found)
    monkeypatch.setattr(speed.Rounds, "_visit", visit)
    monkeypatch.setattr(cache, "build", lambda *given, **more: pytest.fail("what was built is built again"))
    code, found, _ = ablate(capsys, source, *QUICK, "--parts", "qkv")
    assert code == 0 and found["interrupted"] is False and found["rounds"] == 3


def test_a_cell_beyond_the_limit(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, told = ablate(capsys, source, *QUICK[:-1], "8,4", "60,8", "--batch", "1,3", "--parts", "late-stop")
    assert code == 0
    cells = by_name(found)["all on"]["cells"]
    assert [(c["batch"], c["input"], c["latency_ms"] is None) for c in cells] == [
        (1, 8, False),
        (3, 8, False),
        (1, 60, True),
        (3, 60, True),
    ]
    assert cells[2]["reason"] == "68 tokens; the engine's limit is 64" and cells[2]["reason"] in told


def test_presets(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, llama, _ = ablate(capsys, source, *QUICK, "--preset", "llama-report")
    fits("ablate", llama)
    names = ["reference", "+ attention", "+ int8 weights", "+ int8 KV cache", "+ matrix products", "+ all else"]
    rows = by_name(llama)
    assert [name for name in rows if name != "reference, again"] == names
    assert [rows[name]["base"] for name in names] == [None, *names[:-1]]
    assert rows["+ int8 weights"]["weights_bytes"] < rows["+ attention"]["weights_bytes"]
    assert rows["+ int8 KV cache"]["kv_bytes"] < rows["+ int8 weights"]["kv_bytes"]
    assert all(row["gain"] for row in llama["rows"][1:])
    last, first = (next(one for one in samples(llama) if one["name"] == name) for name in (names[-1], names[0]))
    ratios = sorted(a / b for a, b in zip(first["latency_s"], last["latency_s"], strict=True))
    assert rows[names[-1]]["total_gain"] == pytest.approx(ratios[1])
    _, gpt, _ = ablate(capsys, source, *QUICK, "--preset", "gpt-report", "--batch", "1,2")
    fits("ablate", gpt)
    assert list(by_name(gpt))[:3] == ["skip 0 check 1", "skip 0 check 1, again", "skip 0 check 2"]
    assert len({row["engine"] for row in gpt["rows"]}) == 1
    assert all(row["same_tokens"] == 1 for row in gpt["rows"][1:])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--parts", "fusion"), "no part 'fusion' to take out; did you mean fusions?"),
        (("--parts", "kv=int9"), "did you mean kv=int8?"),
        (("--io", "64"), "--io is '64'; give IN,OUT in tokens"),
        (("--batch", "0"), "--batch is '0'; give numbers from 1 to 4096"),
        (("--rounds", "1"), "--rounds is 1; give a number from 2"),
        (("--parts", "qkv", "--preset", "gpt-report"), "--parts and --preset exclude each other"),
        (("--plan", "reference"), "--plan reference has no parts to take out"),
    ],
)
def test_wrong_input(given: tuple[str, ...], message: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, told = ablate(capsys, source, *given)
    assert code == 2 and not found and message in told and len(told.splitlines()) == 1


def test_an_engine_has_no_parts_to_take_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engine.json").write_text("{}")
    code, _, told = ablate(capsys, tmp_path)
    assert code == 2 and "it is an engine" in told and "give the checkpoint that it was built from" in told


@pytest.mark.slow
@pytest.mark.parametrize("model", ["docsum", "pycoder", "tinychat", "tinygal", "tinygal-draft", "tinygpt2"])
def test_bundled_models_take_less_than_two_minutes(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = ablate(capsys, Path(__file__).parents[1] / "models" / model)
    fits("ablate", found)
    assert code == 0 and found["seconds"] < 120 and found["rounds"] >= 3
    measured = [row for row in found["rows"] if row["latency_ms"]]
    assert len(measured) > 15 and all(row["verdict"] for row in measured)
