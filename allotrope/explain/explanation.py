"""What an explanation says, in plain values: by op, by call, by gap."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from allotrope.artifact.manifest import Manifest
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call
from allotrope.explain.account import WHOLE, Account
from allotrope.explain.drive import Asked, Runs
from allotrope.explain.formats import formats
from allotrope.explain.notes import Stepped
from allotrope.explain.why import Evidence
from allotrope.hw.peaks import Ceilings
from allotrope.runtime.program import rows_of
from allotrope.runtime.step import Seconds

_BLOCK = r"^blocks\.\d+\."


@dataclass(frozen=True)
class Explained:
    """An account of the run in the middle, with what is needed to put it into words."""

    manifest: Manifest
    asked: Asked
    account: Account
    runs: Runs
    ceilings: Ceilings | None
    executor: str
    threads: int | None  # None: as many as there are

    @property
    def evidence(self) -> Evidence:
        """Of the engine's choices."""
        return Evidence(self.manifest.evidence.get("choices", ()))

    @property
    def observer_ms(self) -> dict[str, float]:
        """What a run takes with clocks and without, in the middle, and what the clocks cost as a share."""
        pairs = list(zip((run.seconds for run in self.runs.timed), self.runs.plain, strict=True))
        with_, without = (1e3 * statistics.median(one) for one in zip(*pairs, strict=True))
        cost = statistics.median(clocked / plain - 1 for clocked, plain in pairs)
        costs = sorted(clocked / plain - 1 for clocked, plain in pairs)
        return {"timed_ms": with_, "untimed_ms": without, "cost": cost, "least": costs[0], "most": costs[-1]}

    def to_json(self) -> dict[str, Any]:
        """The figures; words and predictions come from elsewhere."""
        account, total = self.account, self.account.total_s
        return {
            "asked": {"batch": self.asked.batch, "input": self.asked.into, "output": self.asked.output},
            "executor": self.executor,
            "threads": self.threads,
            "formats": formats(self.manifest.plan),
            "total_ms": 1e3 * total,
            "t_ctx_ms": 1e3 * account.context.wall_s,
            "t_gen_ms": 1e3 * account.decode.wall_s,
            "step_ms": 1e3 * account.decode.wall_s / account.decode.steps if account.decode.steps else None,
            "steps": {"context": account.context.steps, "decode": account.decode.steps},
            "accounted": self.grouped(lambda call: call.op),
            "kinds": self.grouped(lambda call: short(call.path)),
            "calls": [{"path": call.path, "op": call.op} | one for call, one in self._each()],
            "gaps_ms": {name: 1e3 * took for name, took in account.gaps.items()}
            | {"unaccounted": 1e3 * account.unaccounted_s},
            "unaccounted_share": account.unaccounted_s / total,
            "share_of_limit": None if account.floors_s is None else float(account.floors_s.sum()) / total,
            "ceilings": self._roofs,
            "observer": self.observer_ms,
        }

    def grouped(self, name: Callable[[Call], str]) -> dict[str, dict[str, Any]]:
        """Calls that share a name, the slowest first: time, floor, shares, tactics and why."""
        places: dict[str, list[int]] = {}
        for place, call in enumerate(self.manifest.plan.calls):
            places.setdefault(name(call), []).append(place)
        found = {group: self._group(np.array(members)) for group, members in places.items()}
        if self.account.whole_s:
            found[WHOLE] = {**_EMPTY, "ms": 1e3 * self.account.whole_s, "share": self.account.whole_s / self.total_s}
        return dict(sorted(found.items(), key=lambda one: -one[1]["ms"]))

    def _each(self) -> Iterator[tuple[Call, dict[str, Any]]]:
        """Per call of the plan, in its order; `step_ms` is its median over all decode steps of all runs."""
        account, steps = self.account, self.step_s(False)
        for place, call in enumerate(self.manifest.plan.calls):
            yield (
                call,
                {
                    "context_ms": 1e3 * float(account.context.call_s[place]),
                    "decode_ms": 1e3 * float(account.decode.call_s[place]),
                    "step_ms": None if steps is None else 1e3 * float(steps[place]),
                },
            )

    @property
    def total_s(self) -> float:
        """The run's wall time."""
        return self.account.total_s

    def _group(self, members: np.ndarray[Any, Any]) -> dict[str, Any]:
        account = self.account
        took, floors = float(account.calls_s[members].sum()), account.floors_s
        floor = None if floors is None else float(floors[members].sum())
        return {
            "ms": 1e3 * took,
            "floor_ms": None if floor is None else 1e3 * floor,
            "share": took / self.total_s,
            "share_of_limit": None if floor is None or not took else floor / took,
            **self._intensity(members, took),
            "calls": len(members),
            "context_ms": 1e3 * float(account.context.call_s[members].sum()),
            "decode_ms": 1e3 * float(account.decode.call_s[members].sum()),
            "tactics": self._tactics(members.tolist()),
        }

    def _intensity(self, members: np.ndarray[Any, Any], took: float) -> dict[str, float | None]:
        """Where the calls lie under the machine's roofs: arithmetic by the byte, and by the second."""
        phases = (self.account.context, self.account.decode)
        moved, flops = (
            sum(float(counts[members].sum()) for counts in counted)
            for counted in ([phase.moved for phase in phases], [phase.flops for phase in phases])
        )
        return {
            "flops_per_byte": flops / moved if moved else None,
            "flops_per_s": flops / took if took else None,
        }

    @property
    def _roofs(self) -> dict[str, float] | None:
        """What the machine can do at best: reading memory, reading what a step keeps in a cache, multiplying."""
        known = self.ceilings
        if known is None:
            return None
        return {
            "read_bytes_per_s": known.read_bytes_per_s,
            "step_read_bytes_per_s": known.read_rate(self.account.decode.held or self.account.context.held),
            "flops_per_s": known.rate(self.manifest.plan.dtype),
        }

    def _tactics(self, members: list[int]) -> list[dict[str, Any]]:
        """Each tactic that runs here, once for each reason."""
        found: dict[str, dict[str, Any]] = {}
        plan = self.manifest.plan
        for phase, rows in self.rows.items():
            for place in members:
                call = plan.calls[place]
                count = rows[rows_of(plan, call)]
                if not count:
                    continue
                why = self.evidence.why(call, count).to_json() | {"phase": phase}
                key = f"{why['tactic']} {phase} {why['why']}"
                found.setdefault(key, {**why, "paths": []})["paths"].append(call.path)
        return list(found.values())

    @property
    def rows(self) -> dict[str, dict[str, int]]:
        """How many rows of each kind the longest step of each phase had."""
        steps = self.runs.middle.seen.steps
        found = {}
        for phase, own in (("context", True), ("decode", False)):
            mine = [one for one in steps if one.context == own]
            if mine:
                largest = max(mine, key=lambda one: int(one.step.counts.sum()))
                found[phase] = _rows(largest)
        return found

    def step_s(self, context: bool) -> Seconds | None:
        """Per call of the plan, the median over all steps of this kind of all runs; None if there are none."""
        steps = [one for run in self.runs.timed for one in run.seen.steps if one.context == context]
        seen = [one.call_s for one in steps if one.call_s is not None]
        return np.median(np.stack(seen), axis=0) if seen else None


_EMPTY: Mapping[str, Any] = {
    "ms": 0.0,
    "floor_ms": None,
    "share": 0.0,
    "share_of_limit": None,
    "flops_per_byte": None,
    "flops_per_s": None,
    "calls": 0,
    "context_ms": 0.0,
    "decode_ms": 0.0,
    "tactics": [],
}


def _rows(stepped: Stepped) -> dict[str, int]:
    step = stepped.step
    return {TOKENS: int(step.counts.sum()), LOGITS: step.logits, SAMPLES: step.samples}


def short(path: str) -> str:
    """A path without the number of its block."""
    return re.sub(_BLOCK, "", path)


def samples(runs: Runs) -> dict[str, Any]:
    """Every run's seconds, and every step's with clocks: of all its calls, of what was around them."""
    return {
        "plain_s": list(runs.plain),
        "timed": [
            {
                "seconds": run.seconds,
                "steps": [
                    {
                        "kind": "context" if one.context else "decode",
                        "tokens": int(one.step.counts.sum()),
                        "longest": int(one.step.ends.max()),
                        "busy_s": one.busy_s,
                        "idle_s": one.idle_s,
                        "calls_s": None if one.call_s is None else float(one.call_s.sum()),
                    }
                    for one in run.seen.steps
                ],
            }
            for run in runs.timed
        ],
    }
