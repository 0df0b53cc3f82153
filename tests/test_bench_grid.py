"""`allotrope bench` over a grid, beside peers that behave as they are told and beside transformers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from allotrope.bench import catalogue, comparison, grid
from allotrope.bench.grid import Cell, Sample
from allotrope.bench.workers import Worker, WorkerFailed
from allotrope.cli import main
from allotrope.hw import peaks
from allotrope.hw.detect import detect
from allotrope.hw.peaks import Ceilings
from tests.peers_kit import made_up
from tests.schemas import fits, fits_kept
from tests.verifying import Forge

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def engine(forge: Forge, tmp_path: Path) -> Path:
    """A copy, so that no test finds another's bench.json."""
    return Path(shutil.copytree(forge.built("llama"), tmp_path / "engine"))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["bench", *map(str, arguments), "--threads", "1"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_figures_follow_their_definitions() -> None:
    samples = [Sample(0.1, total, 0.0, 5) for total in (1.0, 1.1, 1.4)]
    found = grid.figures(Cell(4, 50, 11), samples)
    assert found["latency_ms"] == pytest.approx(1100) and found["t_ctx_ms"] == pytest.approx(100)
    assert found["latency_p95_ms"] == pytest.approx(1370) and found["spread"] == pytest.approx(0.4 / 1.1)
    assert found["tokens_per_s"] == pytest.approx(44 / 1.1) and found["prefill_tokens_per_s"] == pytest.approx(2000)
    assert found["decode_tokens_per_s"] == pytest.approx(40.0)
    assert grid.figures(Cell(1, 512, 1), [Sample(0.5, 0.5, 0, 1)])["decode_tokens_per_s"] is None


def test_the_best_peer_is_one_that_says_the_same() -> None:
    def one(rate: float, **more: Any) -> dict[str, Any]:
        theirs = dict.fromkeys(grid.RATES.values(), rate)
        ratios = grid.ratios(dict.fromkeys(grid.RATES.values(), 20.0), theirs)
        return {**theirs, "ratios": ratios, "reason_absent": None, "different": False, **more}

    peers = {"slow": one(10.0), "wrong": one(99.0, different=True), "gone": one(50.0, reason_absent="no")}
    found = grid.beside({**peers, "fast": one(16.0)})
    assert found["best_peer"] == "fast" and found["ratio_to_best"] == pytest.approx(1.25)
    assert grid.beside({"wrong": peers["wrong"]})["best_peer"] is None


def test_the_grid_alone(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peaks.keep(detect("cpu"), Ceilings(2e10, {"fp32": 1e11}, {}, 1, "2026-01-01T00:00:00Z"))
    try:
        code, out, err = call(capsys, engine, "--batch", "1,3", "--io", "8,4", "60,9", "--repeat", 2)
    finally:
        peaks._path(detect("cpu")).unlink()
    assert code == 0, err
    assert "skipped: batch 1, 60 in, 9 out: it needs 69 tokens per request; the engine's limit" in " ".join(out.split())
    assert "limit" in out and max(map(len, out.splitlines()[:-1])) <= 80
    kept = fits_kept("bench", engine)
    assert [(one["batch"], one["input"], one["output"]) for one in kept["cells"]] == [(1, 8, 4), (3, 8, 4)]
    assert len(kept["skipped"]) == 2
    for cell in kept["cells"]:
        assert cell["tokens_per_s"] == pytest.approx(cell["batch"] * 4e3 / cell["latency_ms"])
        assert cell["t_ctx_ms"] > 0 and 0 < cell["share_of_limit"] < 1  # medians of two: the first need not be less
        assert cell["peak_memory_bytes"] > 1e7 and cell["peers"] == {} and cell["best_peer"] is None
    whole = json.loads((engine / "bench.json").read_text())
    assert len(whole["samples"]) == 4 and whole["command"].startswith("allotrope bench")
    assert not (engine / "bench.samples.jsonl").exists()
    with (engine / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["batch_size"] for row in rows] == ["1", "3"] and rows[0]["num_layers"] == "3"
    assert "| batch | runner |" in (engine / "bench.md").read_text()


def test_peers_that_are_wrong_broken_or_absent(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviours: dict[str, dict[str, object]] = {
        "wrong": {},
        "mortal": {"dies_after": 5},
        "silent": {"dies_after": 5, "aloud": False},
        "refuses": {"refuses": True},
        "broken": {"broken": True},
        "talks": {"more": 1},
    }
    made_up(tmp_path, monkeypatch, behaviours)
    asked = ("--cell", "2:6,3", "1:6,1", "--repeat", 3, "--warmup", 0)
    names = ",".join([*behaviours, "llama.cpp"])
    code, out, err = call(capsys, engine, *asked, "--against", names, "--peers", tmp_path / "none")
    assert code == 0, err
    said = " ".join(out.split())
    for words in (
        "mortal stopped at batch 2, 6 in, 3 out: mortal ended: out of luck",
        "silent ended: signal SIGKILL",
        "refuses is absent: refuses's converter ended: it has no such architecture",
        "broken is absent: broken ended: cannot open this",
        "talks ended: 1 tokens for each of 1 prompts were asked for, [2] came",
        "llama.cpp is absent: not installed; run: python -m allotrope.bench.install llama.cpp --peers",
        "wrong (!)",
        "it says something else",
    ):
        assert words in said, words
    kept = fits_kept("bench", engine)
    first, last = kept["cells"]
    assert first["peers"]["wrong"]["different"] and first["peers"]["wrong"]["tokens_per_s"] > 0
    assert first["best_peer"] is None, "whoever says something else is no rival"
    assert first["peers"]["mortal"]["tokens_per_s"] is None
    assert last["peers"]["mortal"]["reason_absent"] is not None  # started anew, and dead once more
    for cell in kept["cells"]:
        assert cell["samples"] == 3, "the engine's own turns are all there"


def test_in_two_groups_each_peer_is_held_against_the_turns_beside_it(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(tmp_path, monkeypatch, {"first": {}, "second": {}})
    monkeypatch.setattr(comparison, "groups", lambda _, peers, free: [[one] for one in peers])
    prompts, ask = list[Any](), Worker.ask

    def noted(self: Worker, do: str, **values: Any) -> dict[str, Any]:
        if do == "run":
            prompts.append((self.name, json.dumps(values["prompts"][0])))
        return ask(self, do, **values)

    monkeypatch.setattr(Worker, "ask", noted)
    code, _, err = call(capsys, engine, "--cell", "1:6,3", "--repeat", 2, "--against", "first,second", "--warmup", 0)
    assert code == 0, err
    kept = json.loads((engine / "bench.json").read_text())
    whole = [(one["runner"], one["group"], one["total_s"]) for one in kept["samples"]]
    names = ("first", "second")
    assert sorted(one[:2] for one in whole) == sorted(
        [(one, name) for name in names for one in ("allotrope", name)] * 2
    )
    for name in names:
        ours, theirs = (
            statistics.median(seconds for one, group, seconds in whole if (one, group) == (runner, name))
            for runner in ("allotrope", name)
        )
        assert kept["cells"][0]["peers"][name]["ratios"]["overall"] == pytest.approx(theirs / ours)
    assert len({text for name, text in prompts if name == "allotrope"}) == 8, "no prompt comes twice"
    assert {text for _, text in prompts} == {text for name, text in prompts if name == "allotrope"}


def test_a_run_that_goes_on_in_other_company_takes_its_turns_anew(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(tmp_path, monkeypatch, {"first": {}, "second": {}})
    asked = ["--cell", "1:6,3", "--repeat", 2, "--against", "first,second", "--warmup", 0, "--resume"]
    monkeypatch.setattr(comparison.Journal, "forget", lambda self: None)
    monkeypatch.setattr(comparison, "groups", lambda _, peers, free: [[one] for one in peers])
    assert call(capsys, engine, *asked)[0] == 0
    before = {one["total_s"] for one in json.loads((engine / "bench.json").read_text())["samples"]}
    monkeypatch.setattr(comparison, "groups", lambda _, peers, free: [list(peers)])
    code, out, _ = call(capsys, engine, *asked)
    assert code == 0 and "going on with 8 samples" in out
    after = json.loads((engine / "bench.json").read_text())
    assert [one["group"] for one in after["samples"]] == ["first second"] * 6
    assert not before & {one["total_s"] for one in after["samples"]} and after["cells"][0]["samples"] == 2


def test_beside_transformers_the_words_are_the_same(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--cell", "3:9,8", "--repeat", 1, "--warmup", 0, "--against", "hf", "-o", tmp_path / "kept", "--json")
    code, out, err = call(capsys, engine, *asked)
    assert code == 0, err
    shown = json.loads(out)
    fits("bench", shown)
    (cell,) = shown["cells"]
    assert cell["peers"]["hf"]["agreement"]["equal"] == 3, "fp32 beside fp32"
    assert cell["best_peer"] == "hf" and cell["ratio_to_best"] > 0
    assert shown["peers"]["hf"]["versions"]["transformers"] and shown["peers"]["hf"]["load_s"] > 0
    assert (tmp_path / "kept" / "bench.json").exists() and not (engine / "bench.json").exists()


def test_a_run_that_was_stopped_goes_on(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(tmp_path, monkeypatch, {"other": {}})
    asked = ("--cell", "1:6,2", "--against", "other", "--warmup", 0)
    turn, turns = comparison.Turns._turn, []

    def interrupted(self: Any, runner: Any, cell: Cell, repeat: int) -> None:
        turns.append(runner.name)
        if len(turns) > 3:
            raise KeyboardInterrupt
        turn(self, runner, cell, repeat)

    monkeypatch.setattr(comparison.Turns, "_turn", interrupted)
    code, out, _ = call(capsys, engine, *asked)
    assert code == 130 and "with --resume the same command goes on" in out
    journal = engine / "bench.samples.jsonl"
    with journal.open("a") as file:
        file.write('{"cell": [1, 6')  # killed while it wrote
    monkeypatch.setattr(comparison.Turns, "_turn", turn)
    before = journal.read_text().splitlines()[1:4]
    assert call(capsys, engine, *asked, "--prepare", "--resume")[0] == 0
    assert journal.read_text().splitlines()[1:4] == before, "preparing takes nothing away"
    code, out, _ = call(capsys, engine, *asked, "--resume")
    assert code == 0 and "going on with 3 samples of an earlier run" in out
    samples = json.loads((engine / "bench.json").read_text())["samples"]
    assert len(samples) == 10
    kept = {json.loads(line)["total_s"] for line in before}
    assert kept <= {one["total_s"] for one in samples}, "what was measured before counts"
    journal.write_text('{"question": "another"}\n' + "\n".join(before))
    assert "going on" not in call(capsys, engine, *asked, "--resume")[1]


@pytest.mark.parametrize("change", ["peers", "core", "version"])
def test_samples_of_another_question_do_not_count(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    made_up(tmp_path, monkeypatch, {"one": {}, "other": {}})
    asked = ["--cell", "1:6,2", "--repeat", 1, "--warmup", 0, "--against", "one", "--resume"]
    monkeypatch.setattr(comparison.Journal, "forget", lambda self: None)
    assert call(capsys, engine, *asked)[0] == 0
    assert "going on with 2 samples" in call(capsys, engine, *asked)[1]
    if change == "peers":
        asked[-2] = "one,other"
    elif change == "core":
        monkeypatch.setattr(comparison, "identity", lambda: {"digest": "another", "isa": "avx2"})
    else:
        monkeypatch.setattr(comparison, "installed", lambda *_: "made-up-2.0")
    code, out, _ = call(capsys, engine, *asked)
    assert code == 0 and "going on" not in out


def test_an_idle_worker_is_stopped_and_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tmp_path, monkeypatch, {"idle": {}})
    peer = catalogue.PEERS["idle"]
    worker = Worker("idle", Path(sys.executable), peer.script, threads=1)
    try:
        worker.ask("open", folder=str(tmp_path), asked={})
        assert _becomes(worker.pid, "T")
        assert worker.ask("warm", prompt=[1, 2]) == {}
        with pytest.raises(WorkerFailed, match="idle ended"):
            worker.ask("run", prompts=[], count=1, beams=1, warm=0, patient=False)
    finally:
        worker.kill()
    code = (
        "import sys, time; from pathlib import Path; from allotrope.bench.workers import Worker\n"
        f"w = Worker('x', Path(sys.executable), {peer.script!r}, threads=1); w.ask('versions')\n"
        "print(w.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _becomes(child, "T")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert _becomes(child, "Z", ""), "nobody is left stopped for ever"


def _becomes(pid: int, *wanted: str) -> bool:
    until = time.monotonic() + 10
    while _state(pid) not in wanted and time.monotonic() < until:
        time.sleep(0.02)
    return _state(pid) in wanted


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1,x"], "--batch is '1,x'; give numbers from 1 to 4096, as 1,8,64"),
        (["--batch", "0"], "--batch is '0'"),
        (["--io", "64"], "--io is '64'; give tokens in and out, as 64,20, and more after a space"),
        (["--io", "64,0"], "--io is '64,0'"),
        (["--cell", "1,2,3"], "--cell is '1,2,3'; give BATCH:IN,OUT, as 8:64,32"),
        (
            ["--io", "60,60"],
            "no cell can be measured; the first: it needs 120 tokens per request; the engine's limit is",
        ),
        (["--batch", "65", "--io", "4,4"], "it needs 65 requests at a time; the engine's limit is 64"),
        (["--against", "lama.cpp"], "--against: no peer 'lama.cpp'; did you mean llama.cpp? peers are hf, hf-compiled"),
        (["--against", "hf,"], "no peer ''"),
        (["--repeat", "0"], "--repeat is 0; it must be from 1 to 1000"),
        (["--beams", "17"], "--beams is 17"),
        (["--peer-format", "8"], "--peer-format is for peers, and there are none; name some: --against"),
        (["--rate", "3"], "--rate is for a load, and there is none; give --load N, or leave it out"),
        (["--load", "3", "--batch", "1"], "--batch is for the grid, and --load gives a load"),
        (["--original", "x", "--against", "hf", "--io", "4,4"], "x"),
        (["-o", "/dev/null/x"], "/dev/null/x: cannot be written"),
    ],
)
def test_wrong_usage(forge: Forge, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, _, err = call(capsys, forge.built("llama"), *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1, err


def test_what_memory_gave_is_kept_and_its_median_counts() -> None:
    samples = [Sample(0.1, 1.0, 0.0, 5, rate) for rate in (50e9, 70e9, 60e9)]
    assert grid.read_rate(samples) == 60e9
    assert [Sample.from_json(one.to_json()) for one in samples] == samples
    unknown = Sample(0.1, 1.0, 0.0, 5)
    assert grid.read_rate([unknown]) is None and Sample.from_json(unknown.to_json()) == unknown
    assert grid.read_rate([unknown, samples[0]]) == 50e9
