"""Devices, the timer and the kept ceilings."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace

import pytest

from allotrope import cli, native, settings
from allotrope.errors import UsageError
from allotrope.hw import detect, peaks, timer
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint, versions
from allotrope.ops import registry
from tests.schemas import fits


@pytest.fixture
def cpu() -> Device:
    return detect.detect("cpu")


def test_the_cpu_is_described(cpu: Device) -> None:
    assert cpu.kind == "cpu"
    assert cpu.cores >= 1
    assert cpu.memory_bytes > 1 << 28
    assert list(cpu.features) == sorted(cpu.features)
    assert 0 < detect.available_memory() <= cpu.memory_bytes


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UsageError, match="no device 'tpu'; choose one of auto, cpu, cuda"):
        detect.detect("tpu")


def test_the_fingerprint_is_all_text_and_stable(cpu: Device) -> None:
    first = fingerprint(cpu)
    assert first == fingerprint(cpu)
    assert all(isinstance(value, str) for value in (first.hard | first.soft).values())
    assert first.hard["device"] == "cpu"
    assert versions()["allotrope"] != "absent"


def test_the_timer_measures_a_known_wait(cpu: Device) -> None:
    timing = timer.time_calls(lambda _: time.sleep(0.005), cpu, samples=5)
    assert 0.005 <= timing.median < 0.05
    assert timing.spread >= 0
    assert 3 <= len(timing.samples) <= 5


def test_the_timer_hands_out_rising_indices(cpu: Device) -> None:
    seen: list[int] = []
    timer.time_calls(seen.append, cpu, samples=3, min_sample_s=0.0)
    assert seen == sorted(seen)
    assert len(set(seen[1:])) == len(seen) - 1


def test_medians_resist_one_outlier() -> None:
    timing = timer.summarise([1.0, 1.0, 1.1, 0.9, 50.0])
    assert timing.median == 1.0
    assert timing.spread < 0.2


def test_ceilings_are_measured_kept_and_read_back(cpu: Device) -> None:
    measured = peaks.measure(cpu, budget_s=0.1)
    assert 1e8 < measured.read_bytes_per_s < 1e13
    assert measured.matmul_flops_per_s["fp32"] > 1e9
    assert peaks.keep(cpu, measured)
    assert peaks.load(cpu) == measured
    # the floor is the larger of the two limits
    rate = measured.matmul_flops_per_s["fp32"]
    assert measured.floor_s(measured.read_bytes_per_s, 0, "fp32") == pytest.approx(1.0)
    assert measured.floor_s(0, rate, "fp32") == pytest.approx(1.0)


def test_what_a_cache_holds_is_read_at_the_caches_rate(cpu: Device) -> None:
    measured = peaks.measure(cpu, budget_s=0.05)
    sizes, cache = [int(size) for size in measured.cache_read_bytes_per_s], detect.last_level_cache()
    wanted = [int(cache * share) // 4 * 4 for share in peaks._CACHED] if cache else []
    assert sizes == wanted[: len(sizes)]  # up to what memory is measured with: some caches are larger than half of it
    assert bool(sizes) == bool(cache)
    kept = peaks.Ceilings(10.0, {"fp32": 100.0, "int8": 900.0}, {}, 1, "now", {"64": 40.0, "8": 80.0, "32": 60.0})
    assert [kept.read_rate(held) for held in (1, 8, 20, 32, 48, 64, 1e9)] == [80, 80, 70, 60, 50, 10, 10]
    assert kept.floor_s(120, 0, "fp32", held=32) == 2 and kept.floor_s(120, 0, "fp32") == 12
    assert kept.floor_s(0, 900, "int8") == 1 and kept.floor_s(0, 900, "bf16") == 9  # integers' rate is no other's
    looped = peaks.Ceilings(10.0, {"fp32": 100.0, "bf16": 2.0, "int8": 1.0}, {}, 1, "now")  # no instructions for those
    assert looped.floor_s(0, 900, "int8") == looped.floor_s(0, 900, "bf16") == 9
    plain = peaks.Ceilings(10.0, {"fp32": 100.0}, {}, 1, "now")
    assert plain.read_rate(1) == 10
    slow = peaks.Ceilings(10.0, {"fp32": 100.0}, {}, 1, "now", {"8": 80.0, "64": 4.0})
    assert slow.read_rate(60) == 10  # a noisy moment makes no cache slower than memory


def test_damaged_ceilings_count_as_absent(cpu: Device) -> None:
    path = peaks._path(cpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in ("", "[]", '{"schema": 1}', '{"schema": 1, "ceilings": {"x": 1}}', "{"):
        path.write_text(text)
        assert peaks.load(cpu) is None


def test_doctor_lists_every_op_and_tactic_with_a_reason_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    fits("doctor", found)
    assert found["device"]["kind"] == "cpu"
    assert set(found["tactics"]) == set(registry.names())
    for op, entries in found["tactics"].items():
        assert [entry["name"] for entry in entries] == [tactic.name for tactic in registry.tactics(op)]
        assert any(entry["why_not"] is None for entry in entries), op
        assert all(entry["why_not"] is None or len(entry["why_not"]) > 10 for entry in entries)


def test_doctor_says_what_the_native_core_computes_by(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = {"portable": "", "avx2": "", "avx512": "this CPU has no AVX-512", "amx": "this CPU has no AMX"}
    for core, threads, words in (
        (
            native.Found(object(), "avx2", "the best that this CPU has", lacking),
            2,
            "avx2: the best that this CPU has",
        ),
        (native.Found(why="it is not built; with a C++ compiler: make native"), None, "none: it is not built; with"),
    ):
        monkeypatch.setattr(native, "find", lambda core=core: core)
        monkeypatch.setattr(native, "threads", lambda: 2)
        monkeypatch.setattr(native, "why_threads", lambda: "all 2 cores")
        assert cli.main(["doctor", "--json", "--device", "cpu"]) == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        fits("doctor", found)
        assert found["native"]["isa"] == (core.isa or None) and found["native"]["threads"] == threads
        assert found["native"]["why_threads"] == (threads and "all 2 cores")
        assert threads is None or "2 threads: all 2 cores" in captured.err
        assert found["native"]["why"] == core.why and f"native    {words}" in captured.err
        assert {one["name"]: one["why_not"] or "" for one in found["native"]["isas"]} == core.lacking
        assert all(f"not {name}: {lacks}" in captured.err for name, lacks in core.lacking.items() if lacks)


def test_doctor_says_which_rates_count_for_nothing(cpu: Device, capsys: pytest.CaptureFixture[str]) -> None:
    peaks.keep(cpu, peaks.Ceilings(1e10, {"fp32": 1e11, "bf16": 1e9, "int8": 2e11}, {}, 1, "now"))
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "bf16 matrix product 1 GFLOP/s; limits take fp32's, which is faster" in printed
    assert "int8 matrix product 200 GOP/s\n" in printed


def test_a_rate_that_would_take_too_long_is_taken_from_a_small_product(cpu: Device) -> None:
    """On a CPU alone: on a GPU a small product is little but its launch."""
    sizes: list[int] = []

    def product(size: int) -> peaks.Product:
        sizes.append(size)
        return lambda _: time.sleep(0.001 if size < 1000 else 0)

    rate, _ = peaks._rate(product, 2048, cpu, 0.1)
    assert sizes == [256] and 1e9 < rate < 2 * 256**3 / 0.001
    sizes.clear()
    peaks._rate(product, 2048, cpu, 2.0)
    assert sizes == [256, 2048]
    sizes.clear()
    gpu = replace(cpu, kind="cuda")
    with contextlib.suppress(Exception):  # whose clock needs one
        peaks._rate(product, 2048, gpu, 0.1)
    assert sizes == [2048]


def test_doctor_clears_what_it_kept(cpu: Device, capsys: pytest.CaptureFixture[str]) -> None:
    kept = peaks.Ceilings(1.0, {"fp32": 1.0}, {}, 1, "now")
    assert peaks.keep(cpu, kept)
    (settings.cache_dir() / "engines" / "x").mkdir(parents=True)
    assert cli.main(["doctor", "--clear-cache", "--device", "cpu"]) == 0
    assert peaks.load(cpu) is None
    assert not (settings.cache_dir() / "engines").exists()
    assert "not measured: run `allotrope doctor --measure`" in capsys.readouterr().out


def test_a_capture_that_fails_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending a capture that was lost is an error, too, and says nothing: out of memory must stay out of memory."""
    import contextlib

    import torch

    from allotrope.errors import OutOfMemory
    from allotrope.hw.capture import Graphs

    class Lost:
        """A stream, and a graph, that take everything but the end of a capture."""

        def capture_end(self) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

        def __getattr__(self, name: str) -> object:
            return lambda *args, **options: None

    for name in ("Stream", "CUDAGraph", "current_stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, Lost)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    runs = []

    def body() -> None:
        runs.append(1)
        if len(runs) > 1:
            raise OutOfMemory("temporaries need 2 GiB")

    with pytest.raises(OutOfMemory, match="temporaries need"):
        Graphs().record(body)
