"""One model in one process: `python worker.py SCRIPT`. Requests come as JSON lines, answers go the same way.

The clock is around `generate` alone. Whoever asks may stop this process with a signal in between, so that an idle
worker takes nothing from one that is measured. An error ends it; its last words are on stderr.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

_PIECE = 1 << 24
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_FIRST = 8  # tokens of the prompt that the first token is timed with
_FOREIGN = 0.08  # of a core: more than that by other processes, and a sample is taken again
_TRIES = 3
_SHORT_S = 0.25


def main() -> None:
    """Serve until stdin ends."""
    _end_with_parent()
    # Libraries print; what they say goes to stderr, and only answers to where answers are read.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(_script(Path(sys.argv[1])))
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, f"do_{request.pop('do')}")(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _end_with_parent() -> None:
    """A request that takes minutes must not outlive who asked; elsewhere than on Linux the end of stdin has to do."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended meanwhile
        sys.exit(1)


def _script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Worker:
    """What may be asked of a worker."""

    def __init__(self, script: ModuleType) -> None:
        self._script: Any = script
        self._model: Any = None
        self._on_gpu = False

    def do_convert(self, source: str, target: str, form: str) -> dict[str, Any]:
        """Write what the script's runtime reads."""
        began = time.perf_counter()
        self._script.convert(source, target, form)
        return {"seconds": time.perf_counter() - began}

    def do_versions(self) -> dict[str, Any]:
        """What the script imports."""
        return {"versions": self._script.versions()}

    def do_open(self, folder: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Load a model whose files lie in the page cache, and answer a first short prompt."""
        _read_through(Path(folder))
        began = time.perf_counter()
        versions = self._script.versions()  # imports
        imported = time.perf_counter()
        self._on_gpu = asked.get("device") == "cuda"
        self._model = self._script.open_model(folder, asked)
        loaded = time.perf_counter()
        self._model.generate([list(range(3, 3 + _FIRST))], 1, 1)
        first = time.perf_counter()
        return {
            "versions": versions,
            "import_s": imported - began,
            "load_s": loaded - imported,
            "first_token_s": first - imported,
            "actual": self._model.actual,
            "memory": _memory(),
            "facts": getattr(self._model, "facts", {}),
        }

    def do_run(
        self, prompts: list[list[list[int]]], count: int, beams: int, warm: int, patient: bool
    ) -> dict[str, Any]:
        """Generate once with each set of prompts until one go was undisturbed; after `warm` goes that do not count.

        The quietest go's seconds, how much of the machine others had, and what the first set was answered with. Prompts
        differ from go to go: some runtimes remember what they have seen.
        """
        for i in range(warm):  # on a GPU as long as those that count: libraries prepare kernels for each new length
            self._model.generate(prompts[-1 - i % len(prompts)], count if self._on_gpu else min(count, 4), beams)
        _forget_peak()
        goes = list[tuple[float, float]]()
        answer: list[list[int]] | None = None
        for group in prompts[: _TRIES if patient else 1]:
            before, began = _busy(), time.perf_counter()
            tokens = self._model.generate(group, count, beams)
            seconds = time.perf_counter() - began
            goes.append((_foreign(before, _busy(), seconds), seconds))
            counts = sorted({len(one) for one in tokens})
            if counts != [count] or len(tokens) != len(group):
                raise ValueError(f"{count} tokens for each of {len(group)} prompts were asked for, {counts} came")
            answer = answer or tokens
            if goes[-1][0] <= _FOREIGN:
                break
        foreign, seconds = min(goes)
        return {
            "seconds": seconds,
            "foreign": foreign,
            "goes": len(goes),
            "tokens": answer,
            "memory": _memory(self._model),
            "read_bytes_per_s": self._model.read_rate() if hasattr(self._model, "read_rate") else None,
        }

    def do_warm(self, prompt: list[int]) -> dict[str, Any]:
        """Two tokens: wakes threads and brings the weights back after another worker's turn."""
        self._model.generate([prompt], 2, 1)
        return {}

    def do_scores(self, prompts: list[list[int]]) -> dict[str, Any]:
        """The engine only: for each prompt the likeliest next tokens with their log-probabilities."""
        return {"scores": self._model.scores(prompts)}


def _read_through(folder: Path) -> None:
    """So that loading is timed from the page cache, whoever wrote the files last."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if path.is_file():
            with path.open("rb") as file:
                while file.read(_PIECE):
                    pass


def _memory(model: Any = None) -> dict[str, int]:
    """Bytes: the most that were resident, what is resident, and on a GPU the most that were allocated."""
    found = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    status = Path("/proc/self/status")
    if status.is_file():
        names = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "anonymous"}
        for line in status.read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in names:
                found[names[name]] = int(rest.split()[0]) * 1024
    if hasattr(model, "device_peak"):
        found["device"] = int(model.device_peak())
    return found


def _forget_peak() -> None:
    """Count the most resident memory from now on, where the system can."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        try:
            path.write_text("5", encoding="ascii")
        except OSError:
            return  # a locked-down container: then it is the most since the start


Busy = tuple[float, float, float]


def _busy() -> Busy | None:
    """CPU seconds that all processes have used, the hypervisor's other guests included; those of this one; and seconds
    that its threads were ready while others ran in their place."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    ticks = [int(word) for word in path.read_text(encoding="ascii").splitlines()[0].split()[1:]]
    # user, nice, system, irq, softirq, steal
    whole = sum(ticks[i] for i in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")
    used = time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return whole, used + children.ru_utime + children.ru_stime, _waited()


def _waited() -> float:
    """As far as the system counts it, which it does in nanoseconds; 0 where it does not."""
    found = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found += int(task.read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            continue  # a thread that has just ended
    return found / 1e9


def _foreign(before: Busy | None, after: Busy | None, seconds: float) -> float:
    """Cores that others had meanwhile; 0 where nobody can tell.

    /proc counts in hundredths of a second: of a short go only what its own threads waited for is known.
    """
    if before is None or after is None:
        return 0.0
    if seconds < _SHORT_S:
        waited = max(0.0, after[2] - before[2]) / seconds
        return min(waited, os.cpu_count() or 1)  # many threads may wait for one core
    return max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds


if __name__ == "__main__":
    main()
