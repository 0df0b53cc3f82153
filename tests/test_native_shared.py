"""One process, several executors and threads, too little memory, too few threads: the core keeps to what it was given.

What would go wrong here is memory that others own, so the worst of it runs in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from allotrope import native
from allotrope.api import LLM, SamplingParams
from allotrope.errors import UsageError
from allotrope.runtime.step import WANT_ALL, WANT_LAST
from tests.engines import LLAMA
from tests.native_kit import native_engine, native_executor, needs_core
from tests.test_eager import one_step

pytestmark = needs_core
ROOT = Path(__file__).parents[1]
BEGIN = """
import resource, warnings
import numpy as np
from dataclasses import replace
from allotrope.errors import OutOfMemory
from allotrope.runtime.step import WANT_ALL, WANT_LAST
from tests.engines import LLAMA
from tests.native_kit import native_engine, native_executor
from tests.test_eager import one_step

def allow(more):  # bytes of addresses; None: as many as there are
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    most = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most if more is None else used + more, most))

def logits(runner, count):
    return runner.run(one_step([5 + i % 7 for i in range(count)], WANT_ALL)).logits.copy()
"""


def alone(script: str) -> str:
    command = [sys.executable, "-c", BEGIN + script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.usefixtures("native_threads")
@pytest.mark.parametrize("own", [1, 3, 8])
def test_an_executor_keeps_its_threads_whatever_is_set_later(own: int) -> None:
    runner = native_executor(native_engine(LLAMA), threads=own)
    rows = {"tokens": 40, "logits": 40, "samples": 4}
    before = runner._workspace(rows)
    for others in (1, 2, 64):
        native.set_threads(others)
        assert runner._workspace(rows) == before and native.threads() == others
        beside = native_executor(native_engine(LLAMA), threads=others)
        beside.close()
    assert runner.run(one_step(list(range(5, 35)), WANT_ALL)).finite.all()  # grows its buffers now
    runner.close()


@pytest.mark.usefixtures("native_threads")
def test_workspaces_grow_with_threads_so_the_number_matters() -> None:
    needed = []
    for count in (1, 8):
        runner = native_executor(native_engine(LLAMA), threads=count)
        needed.append(runner._workspace({"tokens": 40, "logits": 40, "samples": 4}))
        runner.close()
    assert needed[0] < needed[1]


@pytest.mark.usefixtures("native_threads")
def test_engines_with_other_numbers_of_threads_answer_as_they_do_alone(tmp_path: Path) -> None:
    prompt, asked = "def mean(values):\n" * 30, SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=1)
    options = {"device": "cpu", "tune": "off", "executor": "native", "max_batch": 4}
    model = ROOT / "models" / "tinygal-draft"
    with LLM(model, threads=8, **options) as first, LLM(model, threads=1, **options) as second:
        together = [llm.generate([prompt], asked)[0].outputs[0].token_ids for llm in (first, second, first)]
    with LLM(model, threads=1, **options) as single:
        expected = single.generate([prompt], asked)[0].outputs[0].token_ids
    assert together == [expected] * 3


@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.1])
def test_closing_waits_for_another_threads_step(wait_s: float) -> None:
    llm = LLM(ROOT / "models" / "tinygal-draft", device="cpu", tune="off", executor="native", threads=2)
    told: list[BaseException] = []

    def generate() -> None:
        try:
            for _ in range(100):
                llm.generate(["the energy of " * 40], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
        except UsageError as error:
            told.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    time.sleep(wait_s)
    llm.close()
    llm.close()  # once more does nothing
    thread.join(60)
    assert not thread.is_alive()
    assert len(told) == 1 and "has been closed" in str(told[0])


def test_two_threads_on_one_program_are_refused_or_right() -> None:
    runner = native_executor(native_engine(LLAMA), threads=1, poison=False, max_tokens=64)
    steps = [one_step([5, 6, 7, 8] * 12, WANT_LAST), one_step([9, 8, 7] * 12, WANT_LAST)]
    expected = [runner.run(step).tokens.copy() for step in steps]
    wrong: list[int] = []

    def run(which: int) -> None:
        for _ in range(200):
            try:
                found = runner.run(steps[which]).tokens
            except RuntimeError as error:
                assert "another thread's step" in str(error)
                continue
            if not np.array_equal(found, expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runner.close()
    assert not wrong


def test_what_memory_is_too_short_for_leaves_all_as_it_was() -> None:
    said = alone("""
runner = native_executor(native_engine(replace(LLAMA, max_len=4096)), poison=False, pages=4096)
before = logits(runner, 10)
short = 0
for halves in range(2, 100):  # so that now this is refused, and now that
    allow(halves << 19)
    try:
        runner.run(one_step([5 + i % 7 for i in range(4000)], WANT_ALL))
        break
    except OutOfMemory as error:
        assert "activation buffers need" in str(error), error
    short += 1
    assert (logits(runner, 10) == before).all()
    assert logits(runner, 20).shape[0] == 20  # a little more than there was: not as much as was refused
assert short > 5, short
allow(None)
assert (logits(runner, 4000)[:10] == before).all()
print("well")
""")
    assert said.strip() == "well"


def test_fewer_threads_than_wanted_serve_and_are_told_of() -> None:
    said = alone("""
engine = native_engine(LLAMA)
expected = logits(native_executor(engine, threads=1), 12)
allow(6 << 20)  # no stack of a thread's size, whose 8 MiB the system reserves
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    runner = native_executor(engine, threads=5)
assert (logits(runner, 12) == expected).all()
print(*(str(one.message) for one in told))
""")
    assert said.startswith("the system gives 1 threads where 5 were wanted")
