"""A run as Chrome's trace events, which Perfetto opens: https://ui.perfetto.dev.

host       what the loop did: planning, launching, committing, text
executor   each step and, inside it, each call
requests   a lane each: queued, prefill, decode
pages      how many are in use
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from allotrope.artifact.plan import Plan
from allotrope.errors import UsageError
from allotrope.explain.notes import Life, Seen, Stepped

_HOST, _REQUESTS = 1, 2  # processes, as the viewer calls them
_LOOP, _EXECUTOR = 1, 2  # their threads
Event = dict[str, Any]


def events(seen: Seen, plan: Plan, began: float) -> list[Event]:
    """All events, in microseconds after `began`."""
    found = [*_names(len(seen.lives))]
    for span in seen.spans:
        found.append(_event(_HOST, _LOOP, span.name, span.begin - began, span.end - began))
    found += _steps(seen.steps, plan, began)
    for lane, life in enumerate(seen.lives.values(), start=1):
        found += _life(lane, life, began)
    for moment, used in seen.pages:
        found.append({"ph": "C", "pid": _HOST, "name": "pages", "ts": _us(moment - began), "args": {"used": used}})
    return found


def write(path: Path, seen: Seen, plan: Plan, began: float, about: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all."""
    whole = {"displayTimeUnit": "ms", "otherData": dict(about), "traceEvents": events(seen, plan, began)}
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(whole, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"the trace cannot be written: {error.strerror}", where=str(path)) from error


def check_path(path: Path) -> None:
    """A UsageError now, rather than after the run, where no file can be written at `path`."""
    if path.is_dir():
        raise UsageError("the trace cannot be written: it is a folder", where=str(path), remedy="name a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        why = "not writable" if path.parent.is_dir() else "not there"
        raise UsageError(f"the trace cannot be written: its folder is {why}", where=str(path))


def _steps(steps: Sequence[Stepped], plan: Plan, began: float) -> Iterator[Event]:
    """A step lies where its executor worked on it: on a GPU it ends by when the host had its results."""
    free = began
    for number, one in enumerate(steps):
        begin, end = one.launched
        if one.busy_s > end - begin:  # the device worked on after the launch
            end = one.waited
            begin = max(free, end - one.busy_s)
        begin, free = max(begin, free), max(end, free)
        name = "prefill" if one.context else "decode"
        facts = {
            "requests": len(one.step.first),
            "tokens": int(one.step.counts.sum()),
            "longest": int(one.step.ends.max()),
            "busy_ms": 1e3 * one.busy_s,
        }
        yield _event(_HOST, _EXECUTOR, f"{name} {number}", begin - began, free - began, facts)
        yield from _calls(one, plan, begin - began, free - began)


def _calls(one: Stepped, plan: Plan, begin: float, end: float) -> Iterator[Event]:
    """One after the other, as they ran; their lengths are measured, the moments between them are not."""
    if one.call_s is None:
        return
    now = begin
    parts = [("preparing", "", one.prepare_s)]
    parts += [(call.path, call.op, took) for call, took in zip(plan.calls, one.call_s.tolist(), strict=True)]
    for name, op, took in parts:
        if took:
            until = min(now + took, end)
            yield _event(_HOST, _EXECUTOR, name, now, until, {"op": op} if op else {})
            now = until


def _life(lane: int, life: Life, began: float) -> Iterator[Event]:
    moments = (("queued", life.queued), ("prefill", life.started), ("decode", life.first), ("", life.ended))
    known = [(name, moment - began) for name, moment in moments if moment is not None]
    for (name, begin), (_, end) in pairwise(known):
        yield _event(_REQUESTS, lane, name, begin, end)
    if life.ended is not None:
        name = f"finished: {life.reason}"
        yield {"ph": "i", "s": "t", "pid": _REQUESTS, "tid": lane, "name": name, "ts": _us(life.ended - began)}


def _names(requests: int) -> Iterator[Event]:
    lanes = {(_HOST, _LOOP): "loop", (_HOST, _EXECUTOR): "executor"}
    lanes |= {(_REQUESTS, lane): f"request {lane}" for lane in range(1, requests + 1)}
    for process, name in ((_HOST, "engine"), (_REQUESTS, "requests")):
        yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
    for (process, lane), name in lanes.items():
        yield {"ph": "M", "pid": process, "tid": lane, "name": "thread_name", "args": {"name": name}}


def _event(
    process: int, lane: int, name: str, begin: float, end: float, facts: Mapping[str, Any] | None = None
) -> Event:
    found = {"ph": "X", "pid": process, "tid": lane, "name": name, "ts": _us(begin), "dur": _us(end) - _us(begin)}
    return found | ({"args": dict(facts)} if facts else {})


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)
