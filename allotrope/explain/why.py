"""Why a call runs on the tactic that it runs on, and what that one beat: read from the engine's own evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.artifact.plan import Call
from allotrope.units import time_text

REFERENCE = "the engine was built with --plan reference"


@dataclass(frozen=True)
class Why:
    """One tactic at one number of rows: how it was chosen, its rivals with their times, and who was refused."""

    tactic: str
    rows: int
    reason: str
    seconds: float | None
    beaten: tuple[Mapping[str, Any], ...] = ()
    refused: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tactic": self.tactic,
            "rows": self.rows,
            "why": self.reason,
            "tuned_ms": None if self.seconds is None else 1e3 * self.seconds,
            "beaten": [dict(one) for one in self.beaten],
            "refused": [dict(one) for one in self.refused],
        }


class Evidence:
    """An engine's record of its choices, by path."""

    def __init__(self, choices: Sequence[Mapping[str, Any]]) -> None:
        self._choices = {path: choice for choice in choices for path in choice["paths"]}

    def why(self, call: Call, rows: int) -> Why:
        """Of the call at this number of rows."""
        tactic = next(name for bound, name in call.tactics if bound is None or rows <= bound)
        choice = self._choices.get(call.path)
        if choice is None:
            return Why(tactic, rows, REFERENCE, None)
        bucket = _bucket(choice["buckets"], rows)
        rivals = sorted(bucket["runners_up"], key=lambda one: one["seconds"] or 0.0)
        beaten = tuple(
            {
                "tactic": one["tactic"],
                "ms": None if one["seconds"] is None else 1e3 * one["seconds"],
                "row_class": one["row_class"],
            }
            for one in rivals
        )
        return Why(
            tactic, rows, _reason(choice, bucket, rivals), bucket["seconds"], beaten, tuple(bucket["refused"])
        )  # fmt: skip

    def passed_over(self, call: Call, rows: int) -> float:
        """Which share of the call's time the fastest rival would save whose rows have no class; 0 for none."""
        choice = self._choices.get(call.path)
        if choice is None:
            return 0.0
        bucket = _bucket(choice["buckets"], rows)
        rivals = [one["seconds"] for one in bucket["runners_up"] if one["seconds"] and one["row_class"] is None]
        return max(1 - min(rivals) / bucket["seconds"], 0.0) if rivals and bucket["seconds"] else 0.0


def _bucket(buckets: Sequence[Mapping[str, Any]], rows: int) -> Mapping[str, Any]:
    return next((one for one in buckets if one["up_to_rows"] is None or rows <= one["up_to_rows"]), buckets[-1])


def _reason(choice: Mapping[str, Any], bucket: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> str:
    refused = len(bucket["refused"])
    besides = f"; {refused} cannot run here" if refused else ""
    if not rivals:
        return f"the only one that serves{besides}"
    if choice["by"] != "time" or bucket["seconds"] is None:
        return f"first of {len(rivals) + 1} in the listing, nothing was timed{besides}"
    first = rivals[0]
    took, other = _time(bucket["seconds"]), _time(first["seconds"])
    if first["seconds"] is None or first["seconds"] >= bucket["seconds"]:
        slower = (
            "slower" if first["seconds"] and first["seconds"] > bucket["seconds"] + bucket["noise"] else "no faster"
        )
        return f"fastest of {len(rivals) + 1}: {took}; {first['tactic']} is {slower} with {other}{besides}"
    if first["row_class"] is None:
        return f"{took}; {first['tactic']} would take {other}, but a row's bits would depend on the other rows{besides}"
    if first["row_class"] != choice["row_class"] and choice["row_class"] is not None:
        return f"{took}; {first['tactic']} takes {other} here, but its kind is slower over all row counts{besides}"
    return f"{took}; {first['tactic']} takes {other}, which is within the noise or packs the weight otherwise{besides}"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else time_text(seconds)
