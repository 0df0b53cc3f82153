"""Stop strings, found across token and character borders, and the text that may be shown meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """Turns one request's tokens into text, whole characters at a time."""

    def push(self, token: int) -> str:
        """The text that this token completes."""
        ...

    def flush(self) -> str:
        """What is left when no token follows."""
        ...


class StopFilter:
    """Passes text through, character by character, up to the first stop string that completes.

    For each stop string it keeps how long a prefix of it the text ends with (Knuth, Morris and Pratt), so
    the result does not depend on how the text was cut into pieces. Held back is the longest such prefix:
    text that may still become a stop string is not given out. If several complete with the same
    character, the longest counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take text in, give out what is safe. Nothing more comes once `found` is set."""
        if self.found is not None or not self._stops:
            return text if self.found is None else ""
        pending, self._held = self._held + text, ""
        for i in range(len(pending) - len(text), len(pending)):
            for n, stop in enumerate(self._stops):
                self._matched[n] = _advance(stop, self._borders[n], self._matched[n], pending[i])
                if self._matched[n] == len(stop):
                    self.found = stop
                    return pending[: i + 1 - len(stop)]
        safe = len(pending) - max(self._matched)
        self._held = pending[safe:]
        return pending[:safe]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _borders(stop: str) -> list[int]:
    """For each prefix length, the length of its longest proper border (a prefix that is also a suffix)."""
    borders, length = [0, 0], 0
    for char in stop[1:]:
        while length and stop[length] != char:
            length = borders[length]
        length += stop[length] == char
        borders.append(length)
    return borders


def _advance(stop: str, borders: list[int], matched: int, char: str) -> int:
    while matched and stop[matched] != char:
        matched = borders[matched]
    return matched + (stop[matched] == char)


class TextStream:
    """One request's text: its detokenizer, then its stop filter. The text of the first `free` tokens stops nothing."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], free: int = 0) -> None:
        self._detokenizer = detokenizer
        self._filter = StopFilter(stops) if stops else None
        self._free = free

    @property
    def found(self) -> str | None:
        """The stop string that ended the text."""
        return None if self._filter is None else self._filter.found

    def push(self, token: int) -> str:
        """The text that may be shown now that this token came."""
        text = self._detokenizer.push(token)
        if self._filter is None:
            return text
        if self._free:
            self._free -= 1
            return text
        return self._filter.push(text)

    def close(self) -> str:
        """The rest of the text. A stop string that only now completes still cuts it."""
        if self._filter is None:
            return self._detokenizer.flush()
        return self._filter.push(self._detokenizer.flush()) + ("" if self.found else self._filter.flush())
