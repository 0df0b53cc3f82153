"""The command line's frame: help, versions, errors and exit codes, and what importing costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from allotrope import __version__, cli, settings
from allotrope.commands import output
from allotrope.commands.output import WIDTH, Output, count_text, rate_text, time_text
from allotrope.units import bytes_text
from tests.processor import cheapest


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "allotrope", *argv],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )


def test_help_is_fast_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cheapest([sys.executable, "-m", "allotrope", "--help"])[0] <= 0.2
    assert cli.main(["--help"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= WIDTH


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verbs_help_fits_80_columns_and_loads_no_torch(verb: str) -> None:
    code = (
        "import sys; from allotrope import cli; code = cli.main([sys.argv[1], '--help']);"
        "sys.exit(9 if 'torch' in sys.modules or 'transformers' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= WIDTH


def test_import_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, allotrope, allotrope.cli, allotrope.api;"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    for verb in cli.VERBS:  # before anything that the verb requires
        assert cli.main([verb, "--version"]) == 0
    assert capsys.readouterr().out.split() == ["allotrope", __version__] * (1 + len(cli.VERBS))


def test_what_is_kept_can_be_kept_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = settings.cache_dir()
    (tmp_path / "engines" / "old").mkdir(parents=True)
    assert cli.main(["doctor", "--cache-dir", str(tmp_path), "--clear-cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"] == str(tmp_path)
    assert not (tmp_path / "engines").exists()
    assert settings.cache_dir() == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["biuld"], "no verb 'biuld'; did you mean build?"),
        (["build", "x", "-o", "y", "--tuen", "off"], "no option or argument '--tuen'; did you mean --tune?"),
        (["run"], "required"),
        (["doctor", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["doctor", "--seed", "-1"], "--seed is -1"),
        (["doctor", "--threads", "0"], "--threads is 0"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("allotrope: ")
    assert err.count("\n") == 1


def test_asking_for_a_gpu_that_is_not_there_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("allotrope.hw.detect._why_no_cuda", lambda: "torch sees none")
    assert cli.main(["doctor", "--device", "cuda"]) == 2
    assert "use --device cpu" in capsys.readouterr().err


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("allotrope.commands.doctor.run", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "allotrope: interrupted\n"


def test_running_out_of_memory_exits_4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def exhausted(*_: object) -> int:
        raise MemoryError("cannot allocate 9 EB")

    monkeypatch.setattr("allotrope.commands.doctor.run", exhausted)
    assert cli.main(["doctor"]) == 4
    assert "out of memory: cannot allocate 9 EB" in capsys.readouterr().err


def test_json_is_one_object_on_the_last_line_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=True)
    out.line("for people")
    out.result({"nan": float("nan"), "path": Path("x"), "tuple": (1, 2.5)})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"nan": None, "path": "x", "tuple": [1, 2.5]}
    assert captured.err == "for people\n"


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(quiet=True)
    out.line("x")
    out.table(["a"], [["b"]])
    out.result({"a": 1})
    assert capsys.readouterr() == ("", "")


def test_a_long_sentence_stays_within_the_width(capsys: pytest.CaptureFixture[str]) -> None:
    """The longest that a build may say of a fusion, which depends on what it measured."""
    said = "fusion gate_up: not in: apart they are faster by more than the noise (blocks.0.mlp.gate_up)"
    Output().sentence(said)
    Output().sentence("short")
    first, second, third = capsys.readouterr().out.splitlines()
    assert len(first) <= WIDTH < len(said) and f"{first} {second.strip()}" == said and second.startswith("  ")
    assert third == "short"


def test_tables_fit_and_align(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(["name", "ms"], [["a" * 200, "1.5"], ["b", "10.25"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= WIDTH
    assert lines[2].endswith("…    1.5")
    assert lines[3].endswith("10.25")


def test_units() -> None:
    assert bytes_text(0) == "0 B"
    assert bytes_text(1_250_000_000) == "1.25 GB"
    assert bytes_text(36_864) == "36.9 kB"
    assert count_text(6_738_415_616) == "6.738 B"
    assert count_text(125_000_000) == "125 M"
    assert time_text(0.00124) == "1.24 ms"
    assert time_text(3.2e-5) == "32 µs"
    assert time_text(240) == "4.0 min"
    assert time_text(4.06e-8) == "40.6 ns"
    assert (rate_text(9.68e10), rate_text(9.89e14)) == ("96.8 GFLOP/s", "989 TFLOP/s")


def test_a_locale_without_our_characters_works() -> None:
    done = run("--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m allotrope --help | true", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


def test_work_that_says_nothing_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("_SHOW_AFTER_S", 0.0), ("_SILENCE_S", 0.05), ("_LOOK_S", 0.01)):
        monkeypatch.setattr(output, name, seconds)
    out = Output(as_json=True)
    with out.progress(None, "proving"):
        time.sleep(0.3)
        with out.progress(4, "walking") as bar:
            bar.advance()
            time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "proving: 0 s" and lines[-1] == "walking: 25%, 0 s"
    assert 4 <= len(lines) <= 14, "once in a while, and the innermost alone"
    time.sleep(0.1)
    assert not capsys.readouterr().err, "it ends with the work"


def test_a_line_amid_a_bar_begins_at_the_margin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "_SHOW_AFTER_S", 0.0)
    out = Output(as_json=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with out.progress(2, "building") as bar:
        bar.advance()
        out.line("int8 was refused")
    wiped = "\r" + " " * (WIDTH - 1) + "\r"
    drawn, said = capsys.readouterr().err.split(wiped)
    assert "50%" in drawn and said == "int8 was refused\n"
