"""The header of a safetensors file, parsed by its own small grammar.

    file   = length (8 bytes, little-endian) · header (JSON) · data
    header = { "__metadata__": {"key": "text", …}?, "name": {"dtype", "shape", "data_offsets"}, … }

A general JSON parser would build whatever a hostile header asks for before anybody looks at it. This one
accepts nothing but that shape, keeps nothing but the tensors, and sees duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import TensorInfo

MAX_HEADER = 100_000_000  # the format's own bound
MAX_KEYS = 500_000  # four for each tensor; the largest models published have a fifth of that in all their files
MAX_RANK = 8
_TAGS = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "fp8",
    "BOOL": "bool",
}
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}(?![0-9])")
_DECODER = JSONDecoder()  # for strings alone, whose escapes it knows
_OVERFLOW = 2**63


@dataclass(frozen=True)
class Entry:
    """A tensor and where its bytes lie, counted from the end of the header."""

    info: TensorInfo
    begin: int
    end: int


def shown(name: str) -> str:
    """A tensor's name as a message shows it: on one line, and not endless."""
    return repr(name if len(name) <= 100 else f"{name[:100]}…")


def parse_header(raw: bytes, data_size: int, where: str) -> dict[str, Entry]:
    """The tensors of a header, which must cover `data_size` bytes exactly, in order and without overlap."""
    if (keys := raw.count(b":")) > MAX_KEYS:  # before a Python object is made of each
        raise CheckpointError(f"the header has about {keys:,} keys, over the bound of {MAX_KEYS:,}", where=where)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the header is not UTF-8 (byte {error.start})", where=where) from None
    entries = _Header(text, where).entries()
    _check_layout(entries, data_size, where)
    return entries


class _Header:
    """A cursor over the header's text."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where, self.at = text, where, 0

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(problem, where=self.where)

    def peek(self) -> str:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.text[self.at : self.at + 1]

    def take(self, char: str) -> None:
        found = self.peek()
        if found != char:
            seen = repr(found) if found else "the end"
            raise self.fail(f"the header is not valid: {char!r} wanted at character {self.at}, {seen} found")
        self.at += 1

    def string(self) -> str:
        self.take('"')
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at - 1)
        except JSONDecodeError as error:
            raise self.fail(f"the header is not valid: {error.msg} at character {error.pos}") from None
        return str(value)

    def numbers(self, name: str, key: str, most: int) -> list[int]:
        """A list of whole numbers, at most `most` of them."""
        self.take("[")
        found = list[int]()
        while self.peek() != "]" or found:
            match = _NUMBER.match(self.text, self.at)
            if match is None or len(found) == most:
                wrong = self.text[self.at : self.at + 24].split("]")[0].split(",")[0]
                what = f"more than {most} numbers" if match else f"{wrong!r}, which is no whole number under 2^63"
                raise self.fail(f"tensor {shown(name)} has in its {key} {what}")
            found.append(int(match.group()))
            self.at = match.end()
            if self.peek() == "]":
                break
            self.take(",")
        self.take("]")
        return found

    def keys(self, what: str) -> Iterator[str]:
        """The keys of an object, each once; the caller reads the value between two of them."""
        seen = set[str]()
        self.take("{")
        while self.peek() != "}" or seen:
            key = self.string()
            if key in seen:
                raise self.fail(f"{what} names {shown(key)} twice")
            seen.add(key)
            self.take(":")
            yield key
            if self.peek() == "}":
                break
            self.take(",")
        self.take("}")

    def entries(self) -> dict[str, Entry]:
        if not self.text.startswith("{"):
            raise self.fail("the header is not valid: it does not begin with '{'")
        found = dict[str, Entry]()
        for name in self.keys("the header"):
            if name == "__metadata__":
                for _ in self.keys("the header's metadata"):
                    self.string()
            else:
                found[name] = self.entry(name)
        if self.peek():
            raise self.fail(f"the header goes on after its end, at character {self.at}")
        return found

    def entry(self, name: str) -> Entry:
        """One tensor's dtype, shape and offsets, each there once and agreeing."""
        dtype, shape, offsets = "", list[int](), list[int]()
        given = set[str]()
        for key in self.keys(f"tensor {shown(name)}"):
            given.add(key)
            if key == "dtype":
                dtype = self.string()
            elif key == "shape":
                shape = self.numbers(name, key, MAX_RANK)
            elif key == "data_offsets":
                offsets = self.numbers(name, key, 2)
            else:
                raise self.fail(f"tensor {shown(name)} has the unknown key {shown(key)}")
        for key in ("dtype", "shape", "data_offsets"):
            if key not in given:
                raise self.fail(f"tensor {shown(name)} has no {key}")
        if dtype not in _TAGS:
            known = " ".join(_TAGS)
            raise self.fail(f"tensor {shown(name)} has dtype {shown(dtype)}, which is none of {known}")
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self.fail(f"tensor {shown(name)} has data_offsets {offsets}, which are no begin and end")
        info = TensorInfo(tuple(shape), _TAGS[dtype])
        if info.nbytes >= _OVERFLOW:
            raise self.fail(f"tensor {shown(name)} has shape {shape}, whose size overflows 63 bits")
        if info.nbytes != offsets[1] - offsets[0]:
            raise self.fail(
                f"tensor {shown(name)} has shape {shape} and dtype {dtype}, which is {info.nbytes} bytes, "
                f"but its data_offsets {offsets} span {offsets[1] - offsets[0]}"
            )
        return Entry(info, *offsets)


def _check_layout(entries: dict[str, Entry], data_size: int, where: str) -> None:
    """Every byte of the data belongs to one tensor."""
    at, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "overlaps" if entry.begin < at else "leaves a hole after"
            raise CheckpointError(
                f"tensor {shown(name)} begins at byte {entry.begin} and {what} {before}, which ends at {at}",
                where=where,
            )
        at, before = entry.end, f"tensor {shown(name)}"
    if at > data_size:
        raise CheckpointError(
            f"truncated: {before} ends at byte {at} of the data, but only {data_size} bytes are there",
            where=where,
            remedy="download or copy the file again",
        )
    if at < data_size:
        raise CheckpointError(f"{data_size - at} bytes trail after {before}, which ends at byte {at}", where=where)
