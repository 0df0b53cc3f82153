"""Checking what a caller gave: each value against its type and bounds, with one kind of message for all."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

from allotrope.errors import RequestError

LARGEST = 2**31 - 1  # steps carry counts and token ids as int32


def show(value: Any) -> str:
    """The value for a message, cut so that a hostile one cannot fill a log."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of over 4300 digits, nor a list that holds one
        return f"a {type(value).__name__} that holds an endless number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def flag(name: str, value: Any) -> bool:
    """A truth value."""
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {show(value)}; it must be True or False")
    return value


def count(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} is {show(value)}; it must be a whole number from {low} to {high}")
    number = int(value)
    if not low <= number <= high:
        raise RequestError(f"{name} is {show(number)}; it must be from {low} to {high}")
    return number


def real(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """A number from `low` to `high`; with `open_low`, above `low`."""
    bound = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(f"{name} is {show(value)}; it must be a number {bound}")
    try:
        number = float(value)
    except OverflowError:  # a huge integer
        number = math.inf
    if not low <= number <= high or (open_low and number == low):  # NaN is in no interval
        raise RequestError(f"{name} is {show(value)}; it must be {bound}")
    return number + 0.0  # no negative zero


def texts(name: str, value: Any, most: int, most_bytes: int) -> tuple[str, ...]:
    """One string or several, none of them empty, at most `most` of at most `most_bytes` bytes."""
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise RequestError(f"{name} is {show(value)}; it must be a string or a list of strings")
    if len(found) > most:
        raise RequestError(f"{name} holds {len(found)} strings; it must hold at most {most}")
    for i, text in enumerate(found):
        size = len(text.encode("utf-8", "surrogatepass"))
        if not 1 <= size <= most_bytes:
            raise RequestError(f"{name}[{i}] is {size} bytes long; it must be from 1 to {most_bytes} bytes")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise RequestError(f"{name}[{i}] is {show(text)}; it must not hold half a surrogate pair")
    return tuple(found)


def token_ids(name: str, value: Any, most: int) -> tuple[int, ...]:
    """A collection of at most `most` ids."""
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        raise RequestError(f"{name} is {show(value)}; it must be a list of token ids")
    if len(value) > most:  # before anything is made of them: a range may be endless
        raise RequestError(f"{name} holds {len(value)} ids; it must hold at most {most}")
    return tuple(count(f"{name}[{i}]", token, 0, LARGEST) for i, token in enumerate(tuple(value)))


def biases(name: str, value: Any, most: int, low: float, high: float) -> tuple[tuple[int, float], ...]:
    """A mapping from token ids to numbers, or the same as a tuple of pairs, in the order of the ids."""
    if value is None:
        return ()
    if not isinstance(value, Mapping | tuple):
        raise RequestError(f"{name} is {show(value)}; it must map token ids to numbers from {low:g} to {high:g}")
    if len(value) > most:
        raise RequestError(f"{name} holds {len(value)} ids; it must hold at most {most}")
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    found: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise RequestError(f"{name} holds {show(pair)}; it must hold pairs of a token id and a number")
        token = count(f"an id in {name}", pair[0], 0, LARGEST)
        if token in found:
            raise RequestError(f"{name} holds the id {token} twice; it must hold each at most once")
        found[token] = real(f"{name}[{token}]", pair[1], low, high)
    return tuple(sorted(found.items()))
