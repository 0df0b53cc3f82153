"""What a person or a script sees: lines, tables, progress and, with `--json`, one object as the last line.

Written for 80 columns. With `--json` everything meant for people goes to stderr, so that stdout holds
the object alone; with `--quiet` it goes nowhere.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from allotrope.units import time_text as time_text  # noqa: PLC0414 verbs look for it here

WIDTH = 80
_SHOW_AFTER_S = 2.0  # shorter work needs no bar


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

    def __init__(self, stream: TextIO | None, total: int, label: str) -> None:
        self._stream, self._total, self._label = stream, max(total, 1), label
        self._done, self._began, self._last = 0, time.monotonic(), 0.0
        self._shown = False

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        self._done += n
        now = time.monotonic()
        bar = self._stream is not None and self._stream.isatty()
        if self._stream is None or now - self._began < _SHOW_AFTER_S or now - self._last < (0.1 if bar else 10.0):
            return
        self._last, self._shown = now, True
        share = min(self._done / self._total, 1.0)
        if bar:
            filled = int(share * 30)
            text = f"{self._label[:38]:38} {'━' * filled}{'─' * (30 - filled)} {share:4.0%}"
            self._stream.write(f"\r{text}")
        else:
            self._stream.write(f"{self._label}: {share:.0%}\n")
        self._stream.flush()

    def finish(self) -> None:
        """Wipe the bar."""
        if self._shown and self._stream is not None and self._stream.isatty():
            self._stream.write("\r" + " " * (WIDTH - 1) + "\r")
            self._stream.flush()


class Output:
    """Where a verb prints to."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._people: TextIO | None = None if quiet else sys.stderr if as_json else sys.stdout

    def line(self, text: str = "") -> None:
        """One line for people."""
        self.write(text + "\n")

    def sentence(self, text: str) -> None:
        """A line for people, or several where it is longer than the width."""
        for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False):
            self.line(line)

    def write(self, text: str) -> None:
        """Text for people, as it comes (streamed tokens)."""
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
    def progress(self, total: int, label: str) -> Iterator[Progress]:
        """Progress over `total` units; shown only if it takes over two seconds."""
        stream = None if self.quiet else sys.stderr
        bar = Progress(stream, total, label)
        try:
            yield bar
        finally:
            bar.finish()

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
