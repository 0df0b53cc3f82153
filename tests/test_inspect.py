"""`inspect`: what a checkpoint is and how fast it could be, without torch and in well under a second."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from allotrope import cli
from allotrope.hw import peaks
from allotrope.hw.detect import detect
from allotrope.hw.peaks import Ceilings
from tests.processor import cheapest
from tests.schemas import fits
from tests.tiny import KINDS, tiny

CEILINGS = Ceilings(
    read_bytes_per_s=1e11, matmul_flops_per_s={"fp32": 1e12, "bf16": 4e12}, spread={}, threads=2, measured_at="now"
)


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON object and the text for people."""
    assert cli.main(["inspect", *arguments, "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    found: dict[str, Any] = json.loads(printed.out.splitlines()[-1])
    fits("inspect", found)
    return found, printed.err


def test_a_7b_shape_takes_under_a_second_and_no_torch() -> None:
    code = (
        "import sys; from allotrope import cli; code = cli.main(['inspect', 'random:llama-7b', '--device', 'cpu']);"
        "sys.exit(code or ('torch' in sys.modules) or ('transformers' in sys.modules))"
    )
    seconds, printed = cheapest([sys.executable, "-c", code])
    assert "6.738 B parameters" in printed
    assert seconds < 1.0


def test_bytes_and_floors_follow_from_the_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    peaks.keep(detect("cpu"), CEILINGS)
    found, text = inspect(capsys, "random:llama-7b", "--weights", "bf16", "--max-len", "1024", "--max-batch", "16")
    assert found["family"] == "llama" and found["parameters"] == 6_738_415_616
    assert found["bytes"]["weights"] == 2 * 6_738_415_616
    assert found["bytes"]["kv_per_token"] == 2 * 32 * 4096 * 2
    assert found["bytes"]["kv"] == 16 * 1024 * found["bytes"]["kv_per_token"]
    assert [row["batch"] for row in found["predicted"]] == [1, 8, 16]
    # one step reads every matrix but the embedding, of which it reads one row, and one token's keys and values
    read = 2 * (6_738_415_616 - 32000 * 4096) + 2 * 4096 + found["bytes"]["kv_per_token"]
    first = found["predicted"][0]
    assert first["bytes_read"] == read and first["ms_floor"] == pytest.approx(read / 1e11 * 1e3)
    assert first["bytes_read_full"] == read + 1023 * found["bytes"]["kv_per_token"]
    assert found["fits"] is (found["bytes"]["weights"] + found["bytes"]["kv"] <= found["memory_bytes"])
    assert "132 ms" in text and "100.0 GB/s" in text


def test_arithmetic_can_be_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    peaks.keep(detect("cpu"), CEILINGS)
    found, _ = inspect(capsys, "random:llama-7b", "--weights", "bf16", "--max-batch", "4096")
    row = found["predicted"][-1]
    products = 6_738_415_616 - 32000 * 4096 - 65 * 4096  # norms multiply no matrix
    attention = 4 * 32 * 4096  # of the one token that is there
    assert row["ms_floor"] == pytest.approx(1e3 * 4096 * (2 * products + attention) / 4e12)


def test_a_tied_head_is_read_and_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = inspect(capsys, "random:galactica-125m", "--kv", "fp32")
    row = found["predicted"][0]
    positions = 2050 * 768
    assert row["bytes_read"] == 2 * (found["parameters"] - positions + 768) + found["bytes"]["kv_per_token"]
    assert found["bytes"]["kv_per_token"] == 2 * 12 * 768 * 4


def test_without_ceilings_it_says_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    peaks._path(detect("cpu")).unlink(missing_ok=True)
    found, text = inspect(capsys, "random:llama-15m")
    assert found["ceilings"] is None and found["predicted"][0]["ms_floor"] is None
    assert "allotrope doctor --measure" in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_described_within_80_columns(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks.keep(detect("cpu"), CEILINGS)
    found, text = inspect(capsys, str(tiny(kind, tmp_path)))
    lines = [line for line in text.splitlines() if "Writing model" not in line]
    assert lines and all(len(line) <= 80 for line in lines), text
    said = {
        "galactica": "no linear biases",
        "galactica-zero": "18 stored biases",
        "opt-350m": "norm after the block",
        "llama-grouped": "6 heads over 2, 16 wide",
        "llama-llama3": "llama3 scaling by 8",
        "qwen": "NTK past 64 tokens",
        "mistral": "9 tokens on every layer",
        "qwen2": "7 tokens on 2 of 3 layers",
        "qwen3": "a norm on each head",
        "gpt2": "head tied to the embedding",
    }
    assert said.get(kind, found["family"]) in text
    assert found["fits"] is True


def test_a_window_bounds_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = inspect(capsys, str(tiny("qwen2", tmp_path)))
    first = found["predicted"][0]
    per_layer = found["bytes"]["kv_per_token"] // 3
    # layer 0 reads all 64 keys, layers 1 and 2 the last 7
    assert first["bytes_read_full"] - first["bytes_read"] == per_layer * (64 + 7 + 7 - 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["random:llama-7b", "--max-len", "2049"], "--max-len is 2049; give a number from 1 to 2048"),
        (["random:llama-7b", "--max-batch", "0"], "--max-batch is 0; give a number from 1 to 65536"),
        (["random:llama-8b"], "did you mean llama-7b?"),
        (["./nowhere"], "no such folder"),
    ],
)
def test_wrong_input_exits_2_with_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_narrow_weights_and_caches_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    """Codes, scales and the wide rest; the format's bytes are what a step reads."""
    peaks.keep(detect("cpu"), CEILINGS)
    found, text = inspect(capsys, "random:llama-7b", "--weights", "int4", "--keep", "*.down=int8", "--kv", "int8")
    block = 4 * 4096 * 4096 + 2 * 4096 * 11008
    codes = 32 * (block * 4.5 / 8 + 4096 * 11008 + 4 * 4096)
    table = 2 * 32000 * 4096  # the embedding, in the checkpoint's own 16 bits
    wide = 4 * (32000 * 4096 + (2 * 32 + 1) * 4096) + table  # head and norms, in fp32 on a CPU
    assert found["bytes"]["weights"] == codes + wide
    assert found["bytes"]["kv_per_token"] == 32 * 2 * (4096 + 4 * 32)
    assert found["predicted"][0]["bytes_read"] == codes + wide - table + 4 * 4096 + found["bytes"]["kv_per_token"]
    assert " GB as int4 in groups of 32; int8 per channel, the rest fp32" in text
    assert cli.main(["inspect", "random:llama-7b", "--weights", "fp16", "--keep", "*.q=int8"]) == 2
    assert "--weights fp16 is one dtype for all weights, and has no exceptions or groups" in capsys.readouterr().err
