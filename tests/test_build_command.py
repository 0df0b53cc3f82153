"""`allotrope build` from the outside: what it prints, its JSON, its exit codes, its time and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from allotrope.artifact.engine import open_engine
from tests.processor import cheapest
from tests.schemas import fits
from tests.test_builder import LLAMA, shape

ROOT = Path(__file__).parents[1]


def allotrope(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "allotrope", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(cache),
        cwd=ROOT,
    )


def environment(cache: Path) -> dict[str, str]:
    """A bare one; a thread each, as the suite's other processes have."""
    return {"ALLOTROPE_CACHE": str(cache), "ALLOTROPE_THREADS": "1", "PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def test_build_prints_a_table_that_fits_and_json_that_is_whole(tmp_path: Path) -> None:
    ref = shape(tmp_path)
    done = allotrope("build", ref, "-o", str(tmp_path / "e"), "--device", "cpu", "--tune", "fast", cache=tmp_path / "k")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    assert any("tactic" in line and "runner-up" in line for line in lines)
    assert any("torch_" in line for line in lines)
    starred = [line for line in lines if line.endswith("s*")]
    assert starred and any(line.startswith("*: faster here, but") for line in lines), "why was the faster one left?"
    assert "No floor is known before" in done.stdout and "floor" not in lines[0]
    again = allotrope(
        "build", ref, "-o", str(tmp_path / "e"), "--device", "cpu", "--tune", "fast", "--json", cache=tmp_path / "k"
    )
    result: dict[str, Any] = json.loads(again.stdout)
    fits("build", result)
    assert result["engine"] == str(tmp_path / "e") and result["seconds"] > 0
    assert result["choices"] == open_engine(tmp_path / "e").manifest.evidence["choices"]


def test_errors_are_one_line_and_exit_codes_mean_something(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    for code, words, arguments in (
        (2, "unknown shape", ("random:gpt9", "-o", str(tmp_path / "e"))),
        (2, "no part 'x' to build without", (shape(tmp_path), "-o", str(tmp_path / "e"), "--without", "x")),
        (2, "required: -o/--out", (shape(tmp_path),)),
        (1, "exists and is not an engine", (shape(tmp_path), "-o", str(tmp_path / "full"), "--tune", "off")),
        (2, "did you mean --tune", (shape(tmp_path), "-o", "e", "--tun", "off")),
    ):
        done = allotrope("build", *arguments, "--device", "cpu", cache=tmp_path / "k")
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        said = [line for line in done.stderr.splitlines() if not line.startswith("building: ")]  # where it takes long
        assert len(said) == 1 and words in said[0]
    assert not (tmp_path / "e").exists()


def test_help_fits_and_needs_no_torch(tmp_path: Path) -> None:
    done = allotrope("build", "--help", cache=tmp_path)
    assert done.returncode == 0 and all(len(line) <= 80 for line in done.stdout.splitlines())
    code = "import sys; from allotrope import cli; cli.verb_parser('build'); print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"


def test_seeds_name_different_models(tmp_path: Path) -> None:
    digests = set()
    for seed in ("0", "1"):
        done = allotrope(
            "build", shape(tmp_path), "-o", str(tmp_path / seed), "--seed", seed, "--tune", "off", "--device", "cpu",
            cache=tmp_path / "k",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        opened = open_engine(tmp_path / seed)
        digests.add(opened.array("embed.weight").tobytes())
        assert opened.manifest.source["path"].endswith("shape.json" if seed == "0" else "@1")
    assert len(digests) == 2 and LLAMA["vocab_size"] == 99


@pytest.mark.timeout(120)
def test_galactica_125m_untuned_in_time_and_memory(tmp_path: Path) -> None:
    """At most 15 s of a processor, and 1.3 times the checkpoint's bytes above the process after its imports."""
    words = ["build", "random:galactica-125m", "-o", str(tmp_path / "e"), "--tune", "off", "--json", "--device", "cpu"]
    command = [sys.executable, "-m", "allotrope", *words]
    seconds, printed = cheapest(command, times=1, env=environment(tmp_path / "k"), cwd=ROOT)
    result = json.loads(printed)
    source = open_engine(tmp_path / "e").manifest.source["bytes"]
    assert 249e6 < source < 251e6
    assert seconds < 15
    assert 10e6 < result["peak_memory_bytes"] < 1.3 * source
