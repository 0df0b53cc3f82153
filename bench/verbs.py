"""Every verb on every bundled model, as a user who types no option would have it: `python bench/verbs.py`.

Each model is built afresh into an engine, and each verb runs on that by itself, with its JSON held against the verb's
schema. A line of `bench/results/verbs.jsonl` is one verb on one model: seconds, exit code, how long nothing was said,
what was wrong. The table shows the last line of each; the bound is two minutes on two cores, with progress shown.

Timings mean something on an idle machine only (processor time is kept beside them, which others' work changes less);
`--models` and `--verbs` cut the work into short calls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from allotrope.commands.output import Output

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "verbs.jsonl"
MODELS = ("docsum", "pycoder", "tinychat", "tinygal", "tinygal-draft", "tinygpt2")
BOUND_S = 120.0
SILENCE_S = 15.0  # progress is written every ten seconds where nobody looks at a terminal
VERBS: dict[str, tuple[str, ...]] = {  # with what must be given, and in an order in which each finds what it needs
    "build": ("{model}", "-o", "{engine}"),
    "inspect": ("{model}",),
    "run": ("{engine}", "def mean(values):"),
    "verify": ("{engine}",),
    "summarize": ("{engine}", "--data", "{data}/docsum_test.csv"),
    "eval": ("{engine}", "--text", "{data}/{heldout}"),
    "eval-code": ("{engine}", "--code", "{problems}", "--execute"),
    "bench": ("{engine}",),
    "ablate": ("{model}",),
    "explain": ("{engine}",),
    "report": ("{engine}", "-o", "{engine}.html"),
}


@dataclass(frozen=True)
class Ran:
    """One verb on one model."""

    model: str
    verb: str
    seconds: float
    cpu_s: float  # processor time, of all threads: what the seconds would be of one busy core
    code: int
    silent_s: float  # the longest time in which nothing was said
    problem: str
    date: str
    cores: int
    load: float  # others' and this one's, over the last minute: beyond the cores, seconds say little


def main() -> None:
    """Run what was asked for, then print the table; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="%(default)s")
    parser.add_argument("--verbs", default=",".join(VERBS), help="%(default)s")
    parser.add_argument("--work", type=Path, help="keep engines there, and take those that are there (a fresh folder)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--show", action="store_true", help="print the table only")
    args = parser.parse_args()
    if not args.show:
        with tempfile.TemporaryDirectory() as fresh:
            measure(args.models.split(","), args.verbs.split(","), args.work or Path(fresh), args.results)
    sys.exit(not table(args.results))


def measure(models: Sequence[str], verbs: Sequence[str], work: Path, results: Path) -> None:
    """Each model's verbs in turn; an engine that is not there is built first."""
    work.mkdir(parents=True, exist_ok=True)
    problems = work / "problems.jsonl"
    problems.write_text("".join(f"{json.dumps(one)}\n" for one in functions()), encoding="utf-8")
    for model in models:
        engine = work / model
        needed = () if engine.is_dir() or "build" in verbs else ("build",)
        for verb in (*needed, *(name for name in VERBS if name in verbs)):
            ran = run(verb, model, engine, problems)
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(ran)) + "\n")
            sys.stdout.write(
                f"{model} {verb}: {ran.seconds:.1f} s ({ran.cpu_s:.1f} of processors), exit {ran.code} {ran.problem}\n"
            )
            sys.stdout.flush()


def run(verb: str, model: str, engine: Path, problems: Path) -> Ran:
    """The command as a user types it, with `--json` so that it can be checked."""
    data = ROOT / "models" / "data"
    heldout = f"{model.removesuffix('-draft')}_heldout.txt"
    given = {"model": ROOT / "models" / model, "engine": engine, "data": data, "problems": problems, "heldout": heldout}
    name = verb.partition("-")[0]
    words = [word.format(**given) for word in VERBS[verb]]
    command = [sys.executable, "-m", "allotrope", name, *words, "--json", "--cache-dir", str(engine.parent / "cache")]
    began, before = time.monotonic(), spent()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        said, silent = heard(process)
    seconds = time.monotonic() - began
    problem = wrong(name, said[0]) if process.returncode == 0 else said[1].strip().splitlines()[-1][:200]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    used = round(spent() - before, 2)
    kept = Ran(model, verb, round(seconds, 2), used, process.returncode, round(silent, 2), problem, now, 0, 0.0)
    return replace(kept, cores=os.cpu_count() or 0, load=os.getloadavg()[0])


def spent() -> float:
    """Processor seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def heard(process: subprocess.Popen[bytes]) -> tuple[tuple[str, str], float]:
    """All that a process says on both ways, and the longest time without a word."""
    said: dict[Any, bytes] = {process.stdout: b"", process.stderr: b""}
    last = time.monotonic()
    longest = 0.0
    with selectors.DefaultSelector() as selector:
        for stream in said:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                more = os.read(key.fd, 1 << 16)
                if not more:
                    selector.unregister(key.fileobj)
                said[key.fileobj] += more
                now = time.monotonic()
                longest, last = max(longest, now - last), now
    out, err = (text.decode() for text in said.values())
    return (out, err), longest


def wrong(verb: str, printed: str) -> str:
    """What of the JSON is not as the schema has it."""
    shown = json.loads(printed.splitlines()[-1])
    rules = json.loads((ROOT / "allotrope" / "schemas" / f"{verb}.json").read_text(encoding="utf-8"))
    return "; ".join(
        f"{error.json_path}: {error.message[:80]}" for error in Draft202012Validator(rules).iter_errors(shown)
    )


def functions() -> Iterator[dict[str, str]]:
    """Small problems in HumanEval's format."""
    for number in range(1, 21):
        yield {
            "task_id": f"Bundled/{number}",
            "prompt": f'def add_{number}(value):\n    """Return the value plus {number}."""\n',
            "test": f"def check(candidate):\n    assert candidate(1) == {1 + number}\n",
            "entry_point": f"add_{number}",
            "canonical_solution": f"    return value + {number}\n",
        }


def table(results: Path) -> bool:
    """Verbs down, models across; whether all of it holds."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    last = {(one["model"], one["verb"]): one for one in map(json.loads, lines)}
    out = Output()
    rows = []
    for verb in VERBS:
        found = [last.get((model, verb)) for model in MODELS]
        rows.append((verb, *("" if one is None else shown(one) for one in found)))
    out.table(("seconds", *MODELS), rows)
    bad = [one for one in last.values() if not holds(one)]
    for one in bad:
        out.sentence(
            f"{one['model']} {one['verb']}: {one['seconds']} s, exit {one['code']}, silent for {one['silent_s']} s "
            f"{one['problem']}"
        )
    if any(one["load"] > one["cores"] + 1 for one in last.values()):
        out.line("the machine was not idle while some of this was measured")
    missing = len(VERBS) * len(MODELS) - len(last)
    out.line(f"{len(last) - len(bad)} hold, {len(bad)} do not, {missing} were not run")
    return not bad and not missing


def shown(one: dict[str, Any]) -> str:
    """Seconds, and a mark where something is wrong."""
    return f"{one['seconds']:.1f}" + ("" if holds(one) else " NO")


def holds(one: dict[str, Any]) -> bool:
    """Two minutes, no error, the schema's keys, and a word now and then."""
    return one["code"] == 0 and one["seconds"] < BOUND_S and not one["problem"] and one["silent_s"] < SILENCE_S


if __name__ == "__main__":
    main()
