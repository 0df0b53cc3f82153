"""The timeline: what Perfetto needs of it, and that it says what happened."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from allotrope.cli import main
from allotrope.explain import timeline
from allotrope.explain.drive import Asked, Run
from allotrope.explain.notes import Notes, Stepped
from allotrope.explain.session import Setting, explain
from allotrope.explain.watch import _told
from allotrope.hw.detect import detect
from allotrope.runtime.buffers import page_bytes
from allotrope.runtime.options import RuntimeOptions
from tests.engines import LLAMA, plan_of, random_weights, write

pytestmark = pytest.mark.usefixtures("one_thread")
PLAN = plan_of(LLAMA)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = write(tmp_path_factory.mktemp("timeline") / "engine", PLAN, random_weights(LLAMA))
    room = 16 * page_bytes(PLAN, 4)
    sizes = {"max_num_seqs": 2, "max_len": 16, "max_batched_tokens": 20, "page_size": 4}
    options = RuntimeOptions(threads=1, kv_memory=room, **sizes)
    return explain(folder, Asked(3, 10, 6), Setting(options, detect("cpu"), None, traced=True)).runs.middle


@pytest.fixture(scope="module")
def trace(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("timeline") / "t.json"
    timeline.write(path, run.seen, PLAN, run.began, {"command": "x"})
    assert [one.name for one in path.parent.iterdir()] == ["t.json"]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def lanes(trace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Complete events by their lane's name, in order of time."""
    events = trace["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            found[names[event["pid"], event["tid"]]].append(event)
    return {name: sorted(one, key=lambda e: (e["ts"], -e["dur"])) for name, one in found.items()}


def test_every_event_has_what_the_viewer_needs(trace: dict[str, Any]) -> None:
    needed = {
        "X": {"pid", "tid", "name", "ts", "dur"},
        "M": {"pid", "name", "args"},
        "C": {"pid", "name", "ts", "args"},
    }
    needed["i"] = {"pid", "tid", "name", "ts", "s"}
    for event in trace["traceEvents"]:
        assert needed[event["ph"]] <= set(event), event
        assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0, event


def test_events_of_a_lane_lie_beside_or_inside_each_other(trace: dict[str, Any]) -> None:
    for name, events in lanes(trace).items():
        around: list[float] = []
        for event in events:
            begin, end = event["ts"], event["ts"] + event["dur"]
            while around and around[-1] <= begin + 0.002:
                around.pop()
            assert not around or end <= around[-1] + 0.002, (name, event)  # a rounded thousandth on either side
            around.append(end)


def test_one_lane_for_each_request_and_its_life_without_a_hole(trace: dict[str, Any]) -> None:
    found = {name: events for name, events in lanes(trace).items() if name.startswith("request")}
    assert set(found) == {"request 1", "request 2", "request 3"}
    for events in found.values():
        assert [event["name"] for event in events] == ["queued", "prefill", "decode"]
        for before, after in pairwise(events):
            assert before["ts"] + before["dur"] == pytest.approx(after["ts"], abs=0.01)
    # two at a time: the third waits for one of the others to end
    ends = sorted(events[-1]["ts"] + events[-1]["dur"] for events in found.values())
    assert found["request 3"][0]["dur"] > found["request 1"][0]["dur"]
    assert found["request 3"][1]["ts"] >= ends[0] - 5e4
    finished = [e for e in trace["traceEvents"] if e["ph"] == "i"]
    assert [e["name"] for e in finished] == ["finished: length"] * 3


def test_steps_hold_their_calls(trace: dict[str, Any], run: Run) -> None:
    executor = lanes(trace)["executor"]
    steps = [event for event in executor if event.get("args", {}).get("tokens")]
    assert len(steps) == len(run.seen.steps)
    assert {event["name"].split()[0] for event in steps} == {"prefill", "decode"}
    first = steps[0]
    inside = [e for e in executor if e is not first and first["ts"] <= e["ts"] < first["ts"] + first["dur"]]
    calls = [event for event in inside if "op" in event.get("args", {})]
    assert [event["name"] for event in calls] == [call.path for call in PLAN.calls]
    took = run.seen.steps[0].call_s
    assert took is not None
    assert [event["dur"] for event in calls] == pytest.approx((1e6 * took).tolist(), abs=0.01)


def test_pages_are_counted_up_and_come_back(trace: dict[str, Any]) -> None:
    pages = [event["args"]["used"] for event in trace["traceEvents"] if event["ph"] == "C"]
    assert max(pages) == 8 and pages[-1] == 0  # two requests of 15 positions, four to a page


def test_a_gpus_steps_end_when_the_host_had_them_and_nvtx_hears_of_spans(run: Run) -> None:
    """Launching is not doing: a step lies where the device worked, after the one before it."""
    step = run.seen.steps[0].step
    steps = [Stepped(step, (0.0, 0.1), 1.0, busy_s=0.8), Stepped(step, (0.2, 0.3), 1.5, busy_s=0.5)]
    found = list(timeline._steps(steps, PLAN, 0.0))
    assert [(event["ts"], event["dur"]) for event in found] == [(2e5, 8e5), (1e6, 5e5)]

    class Heard(list[str]):
        def range_push(self, name: str) -> None:
            self.append(name)

        def range_pop(self) -> None:
            self.append("end")

    heard = Heard()
    notes = Notes(heard)
    notes.now("queueing")
    notes.now("loop")
    assert _told(heard, "planning", lambda: 7)() == 7
    notes.now("")
    assert heard == ["queueing", "end", "loop", "planning", "end", "end"]


def test_a_load_has_one_too_without_what_warmed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = write(tmp_path / "engine", PLAN, random_weights(LLAMA)), tmp_path / "load.json"
    load = ["--load", "5", "--prompt-lengths", "9", "--output-lengths", "4", "--threads", "1"]
    assert main(["bench", str(folder), *load, "--trace", str(path)]) == 0
    assert f"timeline: {path}" in capsys.readouterr().out
    found = lanes(json.loads(path.read_text()))
    assert {name for name in found if name.startswith("request")} == {f"request {i}" for i in range(1, 6)}
    for name in found:
        if name.startswith("request"):
            assert [event["name"] for event in found[name]] == ["queued", "prefill", "decode"]
    steps = [event for event in found["executor"] if event.get("args", {}).get("tokens")]
    assert sum(event["args"]["tokens"] for event in steps) == 5 * (9 + 3)
    assert all(event["ts"] >= 0 for events in found.values() for event in events)
    assert main(["bench", str(folder), *load, "--trace", str(tmp_path / "none" / "t.json")]) == 2
    assert "the trace cannot be written: its folder is not there" in capsys.readouterr().err
