"""A value in a result file that knows where it stands, so that every doubt is one line with its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from allotrope.errors import AllotropeError


class ResultError(AllotropeError):
    """A result file is unreadable, or not of the form that this version knows."""

    exit_code = 2


@dataclass(frozen=True)
class Value:
    """A JSON value and its place: `bench.json: cells[0].latency_ms`."""

    raw: Any
    place: str

    def at(self, key: str) -> Value | None:
        """The member `key`; None where it is absent or null."""
        found = self._object().get(key)
        return None if found is None else Value(found, self._inside(key))

    def need(self, key: str) -> Value:
        """The member `key`, which must be there."""
        found = self.at(key)
        if found is None:
            raise ResultError(f"has no {key!r}", where=self.place)
        return found

    def path(self, *keys: str) -> Value | None:
        """The member at the end of `keys`; None where the way ends before."""
        here: Value | None = self
        for key in keys:
            here = None if here is None else here.at(key)
        return here

    def each(self, key: str) -> list[Value]:
        """The items of the list `key`; none where it is absent."""
        found = self.at(key)
        return [] if found is None else found.items()

    def items(self) -> list[Value]:
        """The items of a list."""
        if not isinstance(self.raw, list):
            raise self._wrong("a list")
        return [Value(item, f"{self.place}[{i}]") for i, item in enumerate(self.raw)]

    def pairs(self) -> list[tuple[str, Value]]:
        """The members of an object, nulls left out."""
        return [(key, Value(item, self._inside(key))) for key, item in self._object().items() if item is not None]

    def number(self, key: str) -> float | None:
        """The number `key`, or None."""
        found = self.at(key)
        return None if found is None else found.as_number()

    def words(self, key: str) -> str | None:
        """The text `key`, or None."""
        found = self.at(key)
        return None if found is None else found.as_text()

    def flag(self, key: str) -> bool | None:
        """The truth value `key`, or None."""
        found = self.at(key)
        if found is not None and not isinstance(found.raw, bool):
            raise found._wrong("true or false")
        return None if found is None else found.raw

    def as_number(self) -> float:
        """The value itself as a number."""
        if isinstance(self.raw, bool) or not isinstance(self.raw, (int, float)):
            raise self._wrong("a number")
        try:
            number = float(self.raw)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong("a finite number")
        return number

    def as_text(self) -> str:
        """The value itself as text."""
        if not isinstance(self.raw, str):
            raise self._wrong("a text")
        return self.raw

    @property
    def is_object(self) -> bool:
        """Whether it has members."""
        return isinstance(self.raw, dict)

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.raw, dict):
            raise self._wrong("an object")
        return self.raw

    def _inside(self, key: str) -> str:
        return f"{self.place}.{key}" if ": " in self.place else f"{self.place}: {key}"

    def _wrong(self, wanted: str) -> ResultError:
        return ResultError(f"is not {wanted}", where=self.place)
