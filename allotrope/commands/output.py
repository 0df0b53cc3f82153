"""What a person or a script sees: lines, tables, progress and, with `--json`, one object as the last line.

Written for 80 columns. With `--json` everything meant for people goes to stderr, so that stdout holds
the object alone; with `--quiet` it goes nowhere.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from allotrope.units import time_text as time_text  # noqa: PLC0414 verbs look for it here

WIDTH = 80
_SHOW_AFTER_S = 2.0  # shorter work needs no bar
_SILENCE_S = 9.0  # where nobody looks at a terminal, something is said about so often
_REDRAWN_S = 1.0  # on a terminal, a bar that nobody moves
_LOOK_S = 0.5  # how often the pulse looks whether something should be said


def count_text(count: float) -> str:
    """`6.74 B`, `125 M`: counts of parameters and tokens."""
    for unit in ("", " k", " M"):
        if abs(count) < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.4g} B"


def rate_text(per_second: float, unit: str = "FLOP/s") -> str:
    """`96.8 GFLOP/s`, `989 TFLOP/s`."""
    tera = per_second >= 1e12
    return f"{per_second / (1e12 if tera else 1e9):.3g} {'T' if tera else 'G'}{unit}"


class Progress:
    """A bar on a terminal, a line now and then elsewhere, nothing for work that is soon done."""

    def __init__(self, stream: TextIO | None, total: int | None, label: str) -> None:
        self._stream, self._total, self._label = stream, None if total is None else max(total, 1), label
        self._done, self._began, self._last = 0, time.monotonic(), 0.0
        self._shown = False
        self._lock = threading.Lock()  # the work and the pulse both write
        self._bar = stream is not None and stream.isatty()

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        with self._lock:
            self._done += n
            now = time.monotonic()
            if now - self._last >= (0.1 if self._bar else _SILENCE_S):
                self._show(now)

    def pulse(self, silent_since: float) -> float:
        """Say that the work goes on if nobody has said anything for long; when something was said last."""
        with self._lock:
            now = time.monotonic()
            last = max(self._last, silent_since)
            if now - last >= (_REDRAWN_S if self._bar else _SILENCE_S):
                self._show(now)
            return max(self._last, silent_since)

    def _show(self, now: float) -> None:
        if self._stream is None or now - self._began < _SHOW_AFTER_S:
            return
        self._last, self._shown = now, True
        seconds = f"{now - self._began:.0f} s"
        share = None if self._total is None else min(self._done / self._total, 1.0)
        if self._bar:
            filled = 0 if share is None else int(share * 30)
            end = f"{seconds:>5}" if share is None else f"{share:4.0%}"
            self._stream.write(f"\r{self._label[:38]:38} {'━' * filled}{'─' * (30 - filled)} {end}")
        else:
            self._stream.write(f"{self._label}: {'' if share is None else f'{share:.0%}, '}{seconds}\n")
        self._stream.flush()

    def finish(self) -> None:
        """Wipe the bar; it is drawn again if the work goes on."""
        with self._lock:
            if self._shown and self._stream is not None and self._bar:
                self._stream.write("\r" + " " * (WIDTH - 1) + "\r")
                self._stream.flush()
            self._shown = False


class Output:
    """Where a verb prints to."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._people: TextIO | None = None if quiet else sys.stderr if as_json else sys.stdout
        self._bars = list[Progress]()  # the innermost last: it alone speaks where nobody advances
        self._said = time.monotonic()

    def line(self, text: str = "") -> None:
        """One line for people."""
        self.write(text + "\n")

    def sentence(self, text: str) -> None:
        """A line for people, or several where it is longer than the width."""
        for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False):
            self.line(line)

    def write(self, text: str) -> None:
        """Text for people, as it comes (streamed tokens)."""
        self._said = time.monotonic()
        for bar in self._bars:
            bar.finish()
        if self._people is not None:
            self._people.write(text)
            self._people.flush()

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """An aligned table: numbers to the right, text to the left, cut to fit the width."""
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
        gap = 2 * (len(widths) - 1)
        while sum(widths) + gap > WIDTH and max(widths) > 12:  # the widest column gives way first
            widths[widths.index(max(widths))] -= 1
        right = [bool(cells) and all(_numeric(row[i]) for row in cells) for i in range(len(headers))]
        for row in [list(headers), ["─" * width for width in widths], *cells]:
            fitted = [
                cell if len(cell) <= width else cell[: width - 1] + "…" for cell, width in zip(row, widths, strict=True)
            ]
            aligned = [
                cell.rjust(width) if r else cell.ljust(width)
                for cell, width, r in zip(fitted, widths, right, strict=True)
            ]
            self.line("  ".join(aligned).rstrip())

    @contextmanager
    def progress(self, total: int | None, label: str) -> Iterator[Progress]:
        """Progress over `total` units, if they can be counted; within other progress or not; not for two seconds' work.

        A unit may take long: a thread says then, about every ten seconds, that the work goes on, and for how long.
        """
        bar = Progress(None if self.quiet else sys.stderr, total, label)
        self._bars.append(bar)
        over = threading.Event()
        beat = threading.Thread(target=self._pulse, args=(over,), daemon=True, name="pulse")
        first = len(self._bars) == 1 and not self.quiet
        if first:
            beat.start()
        try:
            yield bar
        finally:
            if first:
                over.set()
                beat.join()
            self._bars.remove(bar)
            bar.finish()

    def _pulse(self, over: threading.Event) -> None:
        last = self._said
        while not over.wait(_LOOK_S):
            bar = next(reversed(self._bars), None)
            if bar is not None:
                last = bar.pulse(max(last, self._said))

    def result(self, values: Mapping[str, Any]) -> None:
        """The JSON object with everything shown, printed last with `--json`. NaN and infinity become null."""
        if self.as_json:
            sys.stdout.write(json.dumps(_plain(values), ensure_ascii=False, allow_nan=False) + "\n")
            sys.stdout.flush()


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "-–" or cell == ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if hasattr(value, "item"):  # NumPy's scalars
        return _plain(value.item())
    return str(value)
