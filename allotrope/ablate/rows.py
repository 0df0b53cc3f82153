"""From findings to rows: each variant's figures beside those of the row that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.ablate import effects
from allotrope.ablate.effects import Gain, Interaction
from allotrope.ablate.parts import FUSED, STEP, TACTICS, WHOLES
from allotrope.ablate.quality import cost
from allotrope.ablate.session import Findings
from allotrope.ablate.speed import Cell, same_tokens
from allotrope.ablate.variants import ALL, ALONE, BARE, OFF, STEPS, Variant

_CELL = ("latency_ms", "latency_spread_ms", "prefill_ms", "decode_ms", "tokens_per_s")
_GAIN = ("gain", "gain_interval", "more_than_noise")


@dataclass(frozen=True)
class Row:
    """One variant. `values` are the keys of the JSON; `gains` what its parts buy, by cell."""

    variant: Variant
    values: Mapping[str, Any]
    gains: Mapping[Cell, Gain]

    @property
    def gain(self) -> Gain | None:
        """In the first cell that has one."""
        return next(iter(self.gains.values()), None)

    @property
    def measured(self) -> bool:
        """Whether there are any figures of speed."""
        return self.values["latency_ms"] is not None


def rows(found: Findings) -> list[Row]:
    """Every variant's row, in order."""
    noise = {cell: _noise(found, cell) for cell in found.asked.cells}
    return [_row(found, variant, noise) for variant in found.variants]


def noise_of(found: Findings) -> float:
    """How far the whole is from itself in the first cell, as a share."""
    return math.expm1(_noise(found, found.asked.cells[0]))


def _noise(found: Findings, cell: Cell) -> float:
    control = next((variant for variant in found.variants if variant.again), None)
    whole, again = (found.runners.get(name or "") for name in (control and control.base, control and control.name))
    if whole is None or again is None:
        return 0.0
    return effects.noise(whole.samples.get(cell, ()), again.samples.get(cell, ()), found.asked.seed)


def _row(found: Findings, variant: Variant, noise: Mapping[Cell, float]) -> Row:
    name, gains = variant.name, dict[Cell, Gain]()
    reason = found.reasons.get(name)
    if reason is None and found.interrupted and name not in found.runners:
        reason = "interrupted before it was measured"
    notes = variant.note, found.notes.get(name)
    values: dict[str, Any] = {"name": name, "group": variant.group}
    if variant.parts:
        values["removed" if variant.group == OFF else "added"] = list(variant.parts)
    values |= {"base": variant.base, "reason": reason, "note": "; ".join(filter(None, notes))}
    cells = []
    for cell in found.asked.cells:
        figures, gain = _cell(found, variant, cell, noise[cell])
        cells.append(figures)
        if gain is not None:
            gains[cell] = gain
    first = cells[0]
    values |= {key: first[key] for key in (*_CELL, *_GAIN)}
    values |= _memory(found, name) | _built(found, variant) | _quality(found, variant)
    values["same_tokens"] = _same_tokens(found, variant)
    values["total_gain"] = _total(found, variant) if variant.group == STEPS else None
    values["cells"] = cells
    return Row(variant, values, gains)


def _cell(found: Findings, variant: Variant, cell: Cell, noise: float) -> tuple[dict[str, Any], Gain | None]:
    runner, base = found.runners.get(variant.name), found.runners.get(variant.base or "")
    empty = dict.fromkeys((*_CELL, "reason"))
    figures = {"batch": cell.batch, "input": cell.input, "output": cell.output} | empty
    if runner is None:
        return figures | dict.fromkeys(_GAIN), None
    figures |= effects.figures(runner, cell)
    gain = None
    if base is not None:
        pair = runner.samples.get(cell, ()), base.samples.get(cell, ())
        slow, fast = pair if variant.group == OFF else pair[::-1]
        if variant.name == BARE:  # what all parts buy together
            slow, fast = pair
        gain = effects.gain(slow, fast, found.asked.seed, 0.0 if variant.again else noise)
    return figures | (dict.fromkeys(_GAIN) if gain is None else gain.to_json()), gain


def _total(found: Findings, variant: Variant) -> float | None:
    """How many times faster a preset's row is than its first one, in the first cell."""
    cell, first, own = found.asked.cells[0], found.runners.get(found.variants[0].name), found.runners.get(variant.name)
    if first is None or own is None:
        return None
    total = effects.gain(first.samples.get(cell, ()), own.samples.get(cell, ()), found.asked.seed)
    return None if total is None else total.ratio


def _memory(found: Findings, name: str) -> dict[str, Any]:
    """Weights, and keys and values of the first cell; at the peak, all that opening and running it took."""
    runner, cell = found.runners.get(name), found.asked.cells[0]
    keys = ("memory_bytes", "weights_bytes", "kv_bytes", "kv_bytes_per_token", "peak_memory_bytes")
    if runner is None or not runner.weights_bytes:
        return dict.fromkeys(keys)
    kv = runner.token_bytes * cell.batch * (cell.input + cell.output)
    return dict(
        zip(
            keys,
            (runner.weights_bytes + kv, runner.weights_bytes, kv, runner.token_bytes, runner.peak_bytes),
            strict=True,
        )
    )


def _built(found: Findings, variant: Variant) -> dict[str, Any]:
    made, wanted = found.made.get(variant.name), variant.setting.running.get("executor", "auto")
    own = None if made is None else str(made.described.evidence["executor"]["kind"])
    return {
        "engine": None if made is None else str(made.folder),
        "executor": own if wanted == "auto" or own is None else wanted,
        "build_seconds": None if made is None else made.seconds,
        "build_peak_memory_bytes": None if made is None else made.peak_memory_bytes,
    }


def _quality(found: Findings, variant: Variant) -> dict[str, Any]:
    """Beside the original, and what the part that the row is about adds to the KL."""
    quality, base = found.quality.get(variant.name), found.quality.get(variant.base or "")
    keys = ("kl", "kl_max", "same_top1", "perplexity_ratio", "verdict", "kl_expected", "leaks")
    values: dict[str, Any] = dict.fromkeys(keys) if quality is None else quality.to_json()
    values |= {"kl_cost": None, "kl_cost_interval": None}
    if quality is None or base is None:
        return values
    pair = (base, quality) if variant.group == OFF else (quality, base)  # with the part, and without
    difference, interval = cost(*pair, found.asked.seed)
    return values | {"kl_cost": difference, "kl_cost_interval": list(interval)}


def _same_tokens(found: Findings, variant: Variant) -> float | None:
    runner, base = found.runners.get(variant.name), found.runners.get(variant.base or "")
    return None if runner is None or base is None else same_tokens(runner, base)


def interactions(found: Sequence[Row]) -> list[Interaction]:
    """The whole beside its parts, alone and off; likewise the fusions. Nothing where fewer than two were measured."""
    by_name = {row.variant.name: row for row in found}
    told = []
    whole = by_name.get(BARE)
    apart = _apart(by_name)
    if whole is not None and whole.gain is not None:
        for group, what in ((ALONE, "each part alone"), (OFF, "each part off")):
            each = {row.variant.parts[0]: row.gain.ratio for row in _of(found, group, apart) if row.gain is not None}
            if len(each) > 1:
                told.append(Interaction(what, whole.gain.ratio, each))
    for group, prefix in ((ALONE, "only"), (OFF, "without")):
        fused = by_name.get(f"{prefix} {FUSED}")
        if fused is not None and fused.gain is not None:
            names = _fusions(found)
            each = {row.variant.parts[0]: row.gain.ratio for row in _of(found, group, names) if row.gain is not None}
            if len(each) > 1:
                how = "alone" if group == ALONE else "off"
                told.append(Interaction(f"each fusion {how}", fused.gain.ratio, each))
    return told


def _apart(rows: Mapping[str, Row]) -> tuple[str, ...]:
    """The parts that share nothing: without tactics a native step is none either, so the step lies in these then."""
    whole, bare = (rows.get(name) for name in (ALL, f"without {TACTICS}"))
    if whole is None or bare is None or bare.gain is None:
        return WHOLES
    same = bare.values["executor"] == whole.values["executor"]
    return WHOLES if same else tuple(part for part in WHOLES if part != STEP)


def _of(found: Sequence[Row], group: str, parts: Sequence[str]) -> list[Row]:
    return [row for row in found if row.variant.group == group and row.variant.parts[0] in parts]


def _fusions(found: Sequence[Row]) -> list[str]:
    from allotrope.build.fuse import FUSIONS

    return [fusion.name for fusion in FUSIONS]
