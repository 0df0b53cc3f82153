"""A prediction beside what then happened: found in an earlier explanation, by what it was of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allotrope.errors import UsageError
from allotrope.units import time_text

_SCORED = ("total_ms", "t_ctx_ms", "t_gen_ms", "step_ms")


def read(path: Path) -> dict[str, Any]:
    """An explanation that was kept; a UsageError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the explanation cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise UsageError("this is no explanation: it is no JSON", where=str(path)) from error
    if not isinstance(found, dict) or not isinstance(found.get("predicted"), list) or "formats" not in found:
        remedy = "give the explain.json of the engine that was explained before the change"
        raise UsageError("this is no explanation", where=str(path), remedy=remedy)
    return found


def score(before: Mapping[str, Any], figures: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """The prediction that was of these formats, this batch and these lengths, beside the figures; None: there is none.

    `source`: the digest of the checkpoint. A prediction for another model says nothing about this one.
    """
    if before.get("environment", {}).get("engine", {}).get("source") != source:
        return None
    for one in before["predicted"]:
        if one["formats"] == figures["formats"] and one["asked"] == figures["asked"]:
            rows = {name: _row(one[name], figures[name]) for name in _SCORED if one[name] and figures[name]}
            return {"change": one["change"], "command": before.get("command"), "rows": rows}
    return None


def sentence(scored: Mapping[str, Any]) -> str:
    """How good the prediction was."""
    told = [
        f"{words} {time_text(row['predicted'] / 1e3)} predicted, {time_text(row['measured'] / 1e3)} measured "
        f"({row['error']:+.0%})"
        for name, words in (("step_ms", "a step"), ("t_ctx_ms", "the first token"), ("total_ms", "in all"))
        if (row := scored["rows"].get(name))
    ]
    return f"Predicted before as {scored['change']}: {'; '.join(told)}."


def missing(path: Path, before: Mapping[str, Any], figures: Mapping[str, Any], source: str) -> UsageError:
    """Why nothing there can be scored."""
    if before.get("environment", {}).get("engine", {}).get("source") != source:
        return UsageError("this explanation is of another model", where=str(path))
    there = ", ".join(f"{one['change']} at {_shape(one['asked'])}" for one in before["predicted"]) or "nothing"
    problem = (
        f"no prediction there is of {', '.join(figures['formats']['weights'])} weights at {_shape(figures['asked'])}"
    )
    return UsageError(problem, where=str(path), remedy=f"predicted there: {there}")


def _shape(asked: Mapping[str, Any]) -> str:
    return f"--io {asked['input']},{asked['output']} --batch {asked['batch']}"


def _row(predicted: float, measured: float) -> dict[str, float]:
    return {"predicted": predicted, "measured": measured, "error": predicted / measured - 1}
