"""The table beside every peer on a CPU: which lines are finished, and which bounds hold."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from allotrope import settings
from allotrope.bench.grid import RATES
from allotrope.commands.output import Output
from allotrope.hw import cores
from allotrope.hw.detect import detect
from allotrope.native import identity
from bench import cpu_table

OURS, SHARES = 20.0, {"decode": 0.5, "prefill": 0.5, "overall": 0.5}


def line(precision: str = "8", shape: str = "llama-15m", **peers: float) -> dict[str, Any]:
    """A line whose peers have these rates in every cell."""

    def cell(batch: int, into: int, out: int) -> dict[str, Any]:
        def one(rate: float) -> dict[str, Any]:
            found = {"ratios": dict.fromkeys(RATES, OURS / rate), "peak_memory_bytes": 10**9, "foreign": 0.0}
            return {**dict.fromkeys(RATES.values(), rate), **found, "different": False}

        return {
            "batch": batch,
            "input": into,
            "output": out,
            **one(OURS),
            "shares": dict(SHARES),
            "read_bytes_per_s": 1e10,
            "peak_memory_bytes": 10**8,
            "peers": {name: one(rate) for name, rate in peers.items()},
        }

    cells = [cell(*one) for one in (cpu_table.DECODE, cpu_table.PREFILL, cpu_table.MANY)]
    taken = [{**{name: one[name] for name in ("batch", "input", "output")}, "read_bytes_per_s": 1e10} for one in cells]
    return {
        "shape": shape,
        "precision": precision,
        "cells": cells,
        "samples": taken,
        "peers": {name: {"peer": name.partition(":")[0], "reason_absent": None, "absent": None} for name in peers},
        "options": {"threads": settings.threads() or cores.usable().count},
        "engine": {"first_token_s": 0.2, "bytes": 10**8},
        "environment": {"device": asdict(detect("cpu")), "core": identity()},
    }


def held(found: dict[str, Any]) -> dict[str, str]:
    return {row[2]: row[-1] for row in cpu_table.bounds(found)}


def test_the_best_peer_decides_and_a_ratio_just_below_is_not_enough() -> None:
    everything = {"decode": "yes", "prefill": "yes", "decode of 8": "yes", "first token": "yes", "memory, MB": "yes"}
    assert held(line(slow=5.0, fast=17.0)) == everything
    assert held(line(slow=5.0, fast=OURS / 1.149))["decode"] == "NO"
    row = next(iter(cpu_table.bounds(line(slow=5.0, fast=OURS / 1.149))))
    assert row[4] == "fast" and row[6] == "1.149", "three figures, or a miss looks like a hit"


def test_the_limit_is_enough_where_so_it_is_agreed_and_is_the_best_that_memory_gave() -> None:
    near = line(fast=OURS)
    near["cells"][0]["shares"]["decode"] = 0.9
    assert held(near)["decode"] == "limit"
    near["samples"][0]["read_bytes_per_s"] = 1.1e10  # in another turn memory gave more
    assert held(near)["decode"] == "NO"
    four = line("4", fast=OURS)
    four["cells"][0]["shares"]["decode"] = 0.99
    assert held(four)["decode"] == "NO"


def test_a_peer_counts_by_the_turns_that_were_taken_beside_it() -> None:
    found = line(near=16.0, far=15.0)
    found["cells"][0]["peers"]["far"]["ratios"]["decode"] = 1.1  # ours was slower in its turns
    row = next(iter(cpu_table.bounds(found)))
    assert row[4] == "far" and row[6] == "1.100" and row[-1] == "NO"


def test_memory_must_be_below_the_leanest_and_within_its_room() -> None:
    found = line(a=5.0, b=5.0)
    for cell in found["cells"]:
        cell["peers"]["a"]["peak_memory_bytes"] = 9 * 10**7
    assert held(found)["memory, MB"] == "NO"
    found["cells"][2]["peers"]["a"]["peak_memory_bytes"] = None  # it did not run them all
    assert held(found)["memory, MB"] == "yes"
    found["engine"]["bytes"] = -(10**8)
    assert held(found)["memory, MB"] == "NO"


@pytest.mark.parametrize(
    "change", ["machine", "core", "threads", "peers", "not installed", "failed", "cannot", "precision", None]
)
def test_a_line_is_finished_here_with_this_core_beside_all_that_are_asked_for(change: str | None) -> None:
    found = line(**{"hf": 5.0, "openvino:bf16": 5.0})
    if change == "machine":
        found["environment"]["device"]["name"] = "another"
    elif change == "core":
        found["environment"]["core"] = {"digest": "another", "isa": "avx2"}
    elif change in ("not installed", "failed", "cannot"):
        found["peers"]["hf"] |= {"reason_absent": "why", "absent": change}
    asked = "hf,openvino,llama.cpp" if change == "peers" else "hf,openvino,hf-compiled"  # the last has no 8 bits
    threads = 64 if change == "threads" else None
    done = cpu_table.done([found], "llama-15m", "16" if change == "precision" else "8", asked, threads)
    assert done == (change in (None, "failed", "cannot"))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "lines.jsonl"
    results.write_text(json.dumps(line(hf=5.0)) + '\n{"shape": "llam')
    assert len(cpu_table.kept(results)) == 1
    assert "line 2 is no result, and is left out" in capsys.readouterr().err
    assert cpu_table.able("hf, hf-compiled", "8") == {"hf"}


def test_a_line_beside_fewer_peers_or_of_another_shape_takes_no_place() -> None:
    whole, part, other = line(hf=5.0, openvino=5.0), line(hf=5.0), line(shape="gpt2-medium", hf=5.0)
    (shown,) = cpu_table.machines([whole, part, other]).values()
    assert [one is whole for one in shown] == [True, False] and shown[1] is other
    newer = line(hf=6.0, openvino=6.0)
    assert cpu_table.machines([whole, newer])[cpu_table.machine(whole)] == [newer]


def test_what_is_missing_or_was_disturbed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = line(**dict.fromkeys(cpu_table.PEERS.split(",")[1:], 5.0))
    found["cells"][1]["peers"]["hf"]["foreign"] = 0.4
    found["cells"][2]["peers"]["openvino"]["reason_absent"] = "out of memory"
    found["peers"]["onnxruntime"] |= {"reason_absent": "it broke", "absent": "failed"}
    other, third = line("4", hf=5.0), line("fp32", hf=5.0)
    other["environment"]["device"] = {**other["environment"]["device"], "name": "another"}
    third["environment"]["core"] = None
    by_machine = cpu_table.machines([line("4", hf=1.0), found, third, other])
    assert [len(lines) for lines in by_machine.values()] == [3, 1]
    cpu_table.table(by_machine[cpu_table.machine(found)], Output())
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "llama-15m, 8: not beside llama.cpp llama-15m",
        "llama-15m, 8: onnxruntime is not there: it broke",
        "llama-15m, 8: openvino is not there at 8:64,32: out of memory",
        "llama-15m, 8: others had the machine, too, while these were measured: hf",
        "llama-15m, fp32: not beside ctranslate2, hf-compiled, llama.cpp, onnxruntime, openvino",
        "lines by the core that they were measured with: ",
        "unknown 1",
        "3 of 16 lines",
    ):
        assert words in said, (words, said)
