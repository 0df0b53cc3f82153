"""`allotrope eval --code`: problems, completions, and the process that runs them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from allotrope.build import build
from allotrope.errors import UsageError
from allotrope.eval import code, code_worker, executing, problems
from allotrope.eval.executing import PASSED, Outcome, execute
from tests.eval_kit import call
from tests.schemas import fits, fits_kept
from tests.verifying import Forge

pytestmark = pytest.mark.usefixtures("one_thread")

PYCODER = Path(__file__).parents[1] / "models" / "pycoder"


def problem(number: int, **changes: str) -> dict[str, str]:
    return {
        "task_id": f"Own/{number}",
        "prompt": f'def add_{number}(value):\n    """Return the value plus {number}."""\n',
        "test": f"def check(candidate):\n    assert candidate(1) == 1 + {number}, 'wrong'\n",
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return value + {number}\n",
        **changes,
    }


def write(path: Path, *lines: object) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="module")
def llama(forge: Forge) -> Path:
    """Built before anybody listens to what is printed."""
    return forge.built("llama")


@pytest.fixture(scope="module", autouse=True)
def _locked() -> None:
    """Programs are run only where they can be locked in."""
    try:
        execute("")
    except UsageError as error:
        pytest.skip(str(error))


ATTEMPTS = {
    "x = 1": PASSED,
    "assert 1 == 2, 'no\\nmore'": "AssertionError: no more",
    "def f(:": "SyntaxError: invalid syntax (program, line 1)",
    "raise SystemExit(0)": "SystemExit: 0",
    "import os; os._exit(0)": "ended with status 0",
    "bytearray(2 << 30)": "MemoryError",
    "def f():\n    f()\nf()": "RecursionError",
    "open('x', 'w').write('a' * 9); assert open('x').read() == 'a' * 9": PASSED,
    "open('x', 'w').write('a' * (2 << 20))": "OSError: [Errno 27] File too large",
    "open('{outside}', 'w')": "PermissionError: [Errno 13]",
    "import os; os.unlink('{outside}')": "PermissionError: [Errno 13]",
    "open('{outside}').read()": "PermissionError: [Errno 13]",
    "open('/etc/passwd').read()": "PermissionError: [Errno 13]",
    "import socket; socket.socket()": "PermissionError: [Errno 1]",
    "import os; os.fork()": "PermissionError: [Errno 1]",
    "import os; os.kill(os.getppid(), 9)": "PermissionError: [Errno 1]",
    "import os; os.execv('/bin/true', ['true'])": "PermissionError",
    "import subprocess; subprocess.run(['/bin/true'])": "PermissionError",
    "import threading; threading.Thread(target=print).start()": "RuntimeError: can't start new thread",
    "import os; assert set(os.environ) <= {'LC_CTYPE'}": PASSED,
    "import numpy": "ModuleNotFoundError",
    'import sys; assert not sys.stdin.read(); print(\'{"ended": "passed"}\'); 1 / 0': "ZeroDivisionError",
    "from typing import List; import math, re, collections, itertools, hashlib, heapq, decimal": PASSED,
    "class E(Exception):\n    def __str__(self): raise ValueError\nraise E": "E: ValueError",
}


@pytest.mark.parametrize("program", ATTEMPTS)
def test_what_a_program_can_do(program: str, tmp_path: Path) -> None:
    outside = tmp_path / "victim"
    outside.write_text("1")
    outcome = execute(program.replace("{outside}", str(outside)))
    assert outcome.ended.startswith(ATTEMPTS[program]), outcome
    assert outcome.passed == (ATTEMPTS[program] == PASSED)
    assert outside.read_text() == "1"
    assert code_worker.enough(list(outcome.granted))


def test_a_program_that_forges_its_end_on_every_descriptor_is_not_believed() -> None:
    forging = 'import os\nfor fd in range(32):\n    try:\n        os.write(fd, b\'{"ended": "passed"}\\n\')\n'
    outcome = execute(f"{forging}    except OSError:\n        pass\nraise ValueError('well')")
    assert outcome.ended == "ValueError: well"


def test_a_program_that_floods_its_answer_fills_no_memory() -> None:
    flooding = (
        "import os\nfor fd in range(3, 32):\n    try:\n        while True:\n            os.write(fd, b'x' * 65536)\n"
    )
    outcome = execute(f"{flooding}    except OSError:\n        pass\n")
    assert outcome.ended == "ended with status 1" and code_worker.enough(list(outcome.granted))


@pytest.mark.parametrize("program", ("while True: pass", "import time; time.sleep(60)"))
def test_time_is_limited(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executing, "START_SECONDS", 1)
    assert execute(program, seconds=1).ended == "stopped after 1 s"


def test_what_cannot_be_locked_in_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not code_worker.enough(["limits", "no new privileges", "landlock", "no processes"])
    assert not code_worker.enough(["limits", "no new privileges", "no network", "no processes"])
    answer = b'{"granted": ["limits"]}\n{"ended": "passed"}\n'
    monkeypatch.setattr(executing, "_run", lambda *_: (answer, 0, False))
    with pytest.raises(UsageError, match="cannot lock a program in \\(it grants limits\\); leave --execute out"):
        execute("x = 1")


def test_a_completion_ends_where_something_else_begins() -> None:
    assert problems.ended("    return 1\n\ndef g(): pass") == "    return 1\n"
    assert problems.ended("    if x:\n        return 1\nprint(f(1))\n#") == "    if x:\n        return 1"
    assert problems.ended("    return 1\n") == "    return 1\n"


def test_canonical_solutions_pass_and_wrong_ones_do_not(tmp_path: Path) -> None:
    read = problems.read(write(tmp_path / "p.jsonl.gz", *map(problem, range(3))), 9)
    right = [one.canonical_solution for one in read]
    wrong = ["    return value - 1\n", right[1], "    return ["]
    assert read[0].program(right[0]).endswith("\ncheck(add_0)\n")
    done = code._run(read, (right, wrong), _no_progress)  # type: ignore[arg-type]
    assert [one.ended for one in done[0]] == [PASSED] * 3
    assert [one.ended.split(":")[0] for one in done[1]] == ["AssertionError", PASSED, "SyntaxError"]


def _no_progress(total: int, label: str) -> Any:
    from allotrope.commands.output import Output

    return Output(quiet=True).progress(total, label)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, long = tmp_path / "engine", "# " + "word " * 3000
    build(str(PYCODER), out, device="cpu", tune="off")
    given = write(tmp_path / "p.jsonl", problem(1), problem(2), "", problem(3, prompt=long))
    options = (out, "--code", given, "--max-output", 24)
    status, kept, err = call(capsys, *options)
    assert status == 0 and kept["pass_at_1"] is None and "--execute was not given" in kept["pass_at_1_why_not"]
    fits("eval", kept)
    assert "pass@1: not executed" in err and kept["code"]["too_long"] == 1 and not kept["code"]["executed"]
    lines = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    assert [one["task_id"] for one in lines] == ["Own/1", "Own/2"] and all(one["completion"] for one in lines)
    assert [one["completion"] for one in lines] == [one["original"] for one in lines]
    assert kept["code"]["same_completions"] == 2 and "ended" not in lines[0]
    status, found, err = call(capsys, *options, "--execute", "--problems", 2, "--batch-size", 1)
    assert status == 0 and fits_kept("eval", out) == found
    samples = json.loads((out / "eval.json").read_text())["samples"]["code"]
    assert [one["completion"] for one in samples] == [one["completion"] for one in lines], "batches change nothing"
    passed = [one["ended"] == PASSED for one in samples]
    assert found["pass_at_1"] == found["original_pass_at_1"] == sum(passed) / 2
    assert found["pass_at_1_paired"]["difference"] == 0 and "landlock" in found["code"]["locked_by"]
    assert all(len(line) <= 80 for line in err.splitlines() if str(tmp_path) not in line)


def test_what_failed_to_fit_counts_as_failed() -> None:
    asked = code.Asked(Path("x"), 3, 9, 1, execute=True)
    three = [problems.Problem(**problem(i)) for i in range(3)]
    runs = ([Outcome(PASSED, ())] * 2, [Outcome("no", ()), Outcome(PASSED, ())])
    found = code.Found(asked, three, (0, 2), (None, None), (["", ""], ["", ""]), runs)  # type: ignore[arg-type]
    assert found.passes(0) == [1, 0, 1] and found.passes(1) == [0, 0, 1]
    assert found.figures()["pass_at_1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    (
        ((), (), "no problems in it; give one JSON object a line"),
        (("[1",), (), "line 1: not JSON"),
        ((problem(1), "[1]"), (), "line 2: no text under task_id, prompt, test, entry_point, canonical_solution"),
        (({"task_id": 7, "prompt": ""},), (), "line 1: no text under task_id, test, entry_point, canonical_solution"),
        ((problem(1, entry_point="f()"),), (), "line 1: entry_point is no function's name"),
        ((problem(1, prompt="word " * 100),), (), "no problem fits: the shortest prompt takes 501 of 64 tokens"),
        ((problem(1),), ("--problems", "0"), "--problems is 0; give a number from 1"),
        ((problem(1),), ("--max-output", "0"), "--max-output is 0; give a number from 1"),
        ((problem(1),), ("--window", "9"), "--window goes with --text"),
    ),
)
def test_what_cannot_be_completed(
    lines: tuple[object, ...],
    options: tuple[str, ...],
    said: str,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "p.jsonl", *lines)
    status, found, err = call(capsys, llama, "--code", path, *options)
    assert status == 2 and not found and len(err.splitlines()) == 1 and said in err


def test_a_file_that_cannot_be_unpacked(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / "p.jsonl.gz", problem(1)).read_bytes()
    for content in (b"plain", whole[:-9], whole[:20]):
        (tmp_path / "q.jsonl.gz").write_bytes(content)
        status, _, err = call(capsys, llama, "--code", tmp_path / "q.jsonl.gz")
        assert status == 2 and "q.jsonl.gz: cannot be unpacked" in err and len(err.splitlines()) == 1
