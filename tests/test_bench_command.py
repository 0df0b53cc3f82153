"""`allotrope bench`: what it prints, keeps and refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from allotrope.cli import main
from allotrope.hw import peaks
from allotrope.hw.detect import detect
from allotrope.hw.peaks import Ceilings
from tests.engines import LLAMA, plan_of, random_weights, write
from tests.load_kit import ROWS, write_trace
from tests.schemas import fits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_ceilings() -> None:
    """Other tests of the same process may have measured and kept some."""
    peaks._path(detect("cpu")).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bench") / "engine", plan_of(LLAMA), random_weights(LLAMA))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["bench", *map(str, arguments), "--threads", "1"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verb(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--load", 9, "--prompt-lengths", "3:20", "--output-lengths", "lognormal:5:0.5", "--max-num-seqs", 4)
    code, out, _ = call(capsys, engine, *load, "--json")
    assert code == 0 and len(out.splitlines()) == 1
    fits("bench", json.loads(out))
    found = json.loads(out)["load"]
    assert found["requests"] == 9 and found["finished"] == {"length": 9}
    assert found["output_tokens_per_s"] > 0 and 0 <= found["idle_share"] <= 1
    assert 1 <= found["peak_running"] <= 4
    for name in ("queue_ms", "ttft_ms", "tpot_ms", "itl_ms", "total_ms"):
        assert set(found[name]) == {"mean", "p50", "p90", "p99"}
    assert found["limit"]["seconds"] is None and found["limit"]["bytes"] > 0  # no ceilings are kept here
    kept = json.loads((engine / "bench.json").read_text())["load"]
    assert {name: kept[name] for name in found} == found
    assert kept["command"].startswith(f"allotrope bench {engine} --load 9") and kept["date"] and kept["engine_digest"]
    samples = kept["samples"]
    assert len(samples) == 9 and sum(len(one["tokens_s"]) for one in samples) == found["output_tokens"]
    assert kept["environment"]["device"]["kind"] == "cpu" and kept["options"]["max_num_seqs"] == 4
    again = json.loads(call(capsys, engine, *load, "--json", "-o", tmp_path / "kept")[1])["load"]
    for name in ("prompt_tokens", "output_tokens", "workload", "finished"):
        assert again[name] == found[name]  # the same load
    with (tmp_path / "kept" / "load.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["prompt_tokens"]) for row in rows) == found["prompt_tokens"]
    assert {row["finish_reason"] for row in rows} == {"length"}
    assert call(capsys, engine, *load, "--json", "--seed", 1)[1] != out


def test_for_people(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, engine, "--load", 5, "--rate", 1000, "--priority", 0.5)
    assert code == 0 and max(map(len, out.splitlines()[:-1])) <= 80  # the last names the file
    for words in (
        "5 requests 1000 per second",
        "first token, urgent",
        "doctor --measure",
        "stood still",
        "preemptions",
    ):
        assert words in out
    with kept_ceilings():
        _, out, _ = call(capsys, engine, "--load", 3)
    assert "of the limit's speed" in out and max(map(len, out.splitlines()[:-1])) <= 80


@contextmanager
def kept_ceilings() -> Iterator[None]:
    """As `doctor --measure` would have left them."""
    assert peaks.keep(detect("cpu"), Ceilings(2e10, {"fp32": 1e11}, {}, 1, "2026-01-01T00:00:00Z"))
    yield
    peaks._path(detect("cpu")).unlink()


def test_a_trace_through_the_verb(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "t.csv", *ROWS)
    code, out, _ = call(capsys, engine, "--load", path, "--speedup", "inf", "--requests", 2, "--json")
    found = json.loads(out)["load"]
    assert code == 0 and found["requests"] == 2
    assert found["workload"] == {"trace": "t.csv", "speedup": None, "scale": 64 / 505, "seed": 0}


def test_other_figures_stay(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text('{"cells": [1], "load": "old"}')
    assert call(capsys, engine, "--load", 2, "-o", tmp_path)[0] == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["cells"] == [1] and found["load"]["requests"] == 2
    (tmp_path / "bench.json").write_text("half a fi")
    assert call(capsys, engine, "--load", 2, "-o", tmp_path)[0] == 0
    assert set(json.loads((tmp_path / "bench.json").read_text())) == {"load"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load", "0"], "--load is 0; give a number from 1 to 1000000"),
        (["--load", "9" * 99], "--load is 999"),
        (["--load", "nowhere.csv"], "nowhere.csv: cannot read the trace"),
        (["--load", "3", "--speedup", "2"], "--speedup is for a trace; --load gives a number; leave it out"),
        (["--load", "t.csv", "--rate", "2"], "--rate is for N requests; a trace has its own"),
        (["--load", "3", "--rate", "0"], "--rate is 0.0; it must be from 1e-06 to 1e+09"),
        (["--load", "3", "--rate", "1e-300"], "--rate is 1e-300; it must be from 1e-06 to 1e+09"),
        (["--load", "t.csv", "--speedup", "1e-300"], "--speedup is 1e-300; it must be from 1e-06 to 1e+09"),
        (["--load", "t.csv", "--scale", "1e308"], "--scale is 1e+308; it must be from 1e-06 to 1e+09"),
        (["--load", "t.csv", "--scale", "inf"], "--scale is inf; it must be from 1e-06 to 1e+09"),
        (["--load", "3", "--rate", "inf"], "--rate is inf"),
        (["--load", "t.csv", "--scale", "nan"], "--scale is nan"),
        (["--load", "t.csv", "--requests", "-1"], "--requests is -1; it must be from 1"),
        (["--load", "3", "--priority", "1.5"], "--priority is 1.5; it must be from 0 to 1"),
        (["--load", "3", "--prompt-lengths", "64"], "up to 96 tokens together; the engine's limit is 64"),
        (["--load", "3", "--output-lengths", "many"], "--output-lengths is 'many'; give 128, 100:1024 or lognormal"),
        (["--load", "3", "--max-num-seqs", "0"], "max_num_seqs is 0"),
        (["--load", "3", "-o", "/dev/null/x"], "/dev/null/x: cannot be written: Not a directory"),
    ],
)
def test_wrong_usage(engine: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, _, err = call(capsys, engine, *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load", "nowhere.csv"], "nowhere.csv: cannot read the trace"),
        (["--load", "3", "--output-lengths", "many"], "--output-lengths is 'many'"),
        (["--load", "3", "-o", "/dev/null/x"], "/dev/null/x: cannot be written: Not a directory"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = call(capsys, tmp_path / "no engine", *arguments)
    assert code == 2 and message in err


def test_numbers_gone_wrong_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights(LLAMA)
    weights["head.weight"][7] = torch.inf
    code, out, err = call(capsys, write(tmp_path / "e", plan_of(LLAMA), weights), "--load", 2, "--json")
    assert code == 1 and "allotrope verify" in err
    found = json.loads(out)["load"]
    assert found["finished"] == {"error": 2} and found["ttft_ms"]["mean"] is None
