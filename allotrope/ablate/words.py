"""The rows for people: tables for 80 columns, and one paragraph that says what the figures say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from allotrope.ablate.effects import Interaction
from allotrope.ablate.rows import Row
from allotrope.ablate.session import SAME
from allotrope.ablate.variants import ALL, ALONE, BARE, OFF, PLUS, STEPS, WHOLE
from allotrope.units import bytes_text
from allotrope.verify.verdict import CLOSE, DEGRADED, WITHIN, WORDS

SPEED = ("variant", "latency", "±", "prefill", "decode", "tokens/s", "gain", "in all")
MEMORY = ("variant", "weights", "KV", "peak", "build", "build peak")
QUALITY = ("variant", "KL", "it costs", "top-1", "perplexity", "verdict")
GROUPS = {WHOLE: "", OFF: "– taken out –", ALONE: "– alone –", PLUS: "– added –", STEPS: ""}
_TELLING = 5  # rounds of which Student's interval is not far wider than what was seen
_LONGEST, _ADDS_UP = 30, 0.05  # characters of a name; how far, as a logarithm, gains may be from their product
_LEGEND = """\
ms, medians over {rounds} rounds; ±: half the distance between the quartiles.
prefill: other prompts as long, of which one token is asked; decode: the rest.
gain: how many times faster with the part than without it, paired by round;
~: not more than noise. The same engine measured twice was {noise:.1%} apart."""
BUILDS = """\
peak: what opening and running it added to the process. build: a later row's
takes less, for what an earlier one has checked and timed is known."""


def speed_tables(found: Sequence[Row], cell: int) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """For each group of rows its heading and lines, in one cell."""
    for group, heading in GROUPS.items():
        lines = [_speed(row, cell) for row in found if row.variant.group == group and _there(row, cell)]
        if lines:
            yield heading, lines


def _there(row: Row, cell: int) -> bool:
    return bool(row.values["cells"][cell]["latency_ms"])


def _speed(row: Row, cell: int) -> tuple[str, ...]:
    values = row.values["cells"][cell]
    gain, shows = values["gain"], values["more_than_noise"]
    spread = values["latency_spread_ms"] / values["latency_ms"]
    times = (_ms(values[key]) for key in ("latency_ms", "prefill_ms", "decode_ms"))
    latency, prefill, decode = times
    told = "" if gain is None else f"×{gain:.3f}" if abs(math.log(gain)) < _ADDS_UP else f"×{gain:.2f}"
    mark = "~" if gain is not None and not shows else ""
    total = row.values["total_gain"] if cell == 0 else None
    whole = "" if total is None else f"×{total:.2f}"
    return _name(row), latency, f"{spread:.1%}", prefill, decode, _short(values["tokens_per_s"]), told + mark, whole


def _name(row: Row) -> str:
    return row.variant.name if len(row.variant.name) <= _LONGEST else f"{row.variant.name[: _LONGEST - 1]}…"


def memory_table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """What running it and building it took; the control is left out."""
    keys = ("weights_bytes", "kv_bytes", "peak_memory_bytes", "build_seconds", "build_peak_memory_bytes")
    return [
        (_name(row), *(_size(key, row.values[key]) for key in keys))
        for row in found
        if row.values["build_seconds"] is not None and not row.variant.again
    ]


def _size(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if key == "build_seconds" else bytes_text(value)


def quality_table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """How far rows are from the original, where that is more than rounding."""
    return [
        (
            _name(row),
            f"{row.values['kl']:.1e}",
            "" if row.values["kl_cost"] is None else f"{row.values['kl_cost']:+.1e}",
            f"{row.values['same_top1']:.1%}",
            f"×{row.values['perplexity_ratio']:.4f}",
            row.values["verdict"] + (", leaks" if row.values["leaks"] else ""),
        )
        for row in found
        if row.values["verdict"] not in (None, WITHIN)
    ]


def within_line(found: Sequence[Row]) -> str:
    """How many rows are the original but for rounding, and how far at the most."""
    near = [row.values["kl"] for row in found if row.values["verdict"] == WITHIN]
    if not near:
        return "No row is within rounding of the original."
    whole = "All rows are" if len(near) == sum(row.values["kl"] is not None for row in found) else "The others are"
    return f"{whole} within rounding of the original, KL {max(near):.1e} at the most."


def legend(rounds: int, noise: float) -> str:
    """What the first table's columns are."""
    few = "\nOf so few rounds little is more than noise: --rounds 7 tells more." if rounds < _TELLING else ""
    return _LEGEND.format(rounds=rounds, noise=noise) + few


def reasons(found: Sequence[Row]) -> Iterator[str]:
    """Why rows, or cells of them, have no figures."""
    for row in found:
        if row.values["reason"]:
            yield f"{row.variant.name}: {row.values['reason']}"
            continue
        refused = {cell["reason"] for cell in row.values["cells"] if cell["reason"]}
        for reason in sorted(refused):
            yield f"{row.variant.name}: {reason}"


def notes(found: Sequence[Row]) -> Iterator[str]:
    """What should be known of rows with figures; of several the same once."""
    told: dict[str, list[str]] = {}
    for row in found:
        if row.values["note"] and not row.values["reason"] and row.variant.group != WHOLE:
            told.setdefault(row.values["note"], []).append(row.variant.name)
    yield from (f"{_list(names)}: {note}" for note, names in told.items())


def interaction_line(found: Interaction) -> str:
    """`all on ×2.10; its parts alone ×1.20 · ×1.90 = ×2.28; interaction ×0.92`."""
    singles = " · ".join(f"{name} ×{ratio:.2f}" for name, ratio in found.each.items())
    what = "the fusions together" if "fusion" in found.what else "all on"
    line = f"{found.what}: {singles} = ×{found.product:.2f}; {what} ×{found.whole:.2f}; interaction ×{found.factor:.2f}"
    if abs(math.log(found.factor)) < _ADDS_UP:
        return line + " (they add up)"
    return line + (" (they overlap)" if found.factor < 1 else " (they help one another)")


def paragraph(found: Sequence[Row]) -> str:
    """Which part buys most, which does nothing, which hurts: speed first, then memory and quality."""
    measured = [row for row in found if row.gain is not None and row.variant.parts]
    off = [row for row in measured if row.variant.group in (OFF, STEPS)]
    added = [row for row in measured if row.variant.group == PLUS]
    cells = [row.values["cells"] for row in found][:1]
    said = [f"Speed at {'{batch} × {input}+{output}'.format(**cells[0][0])}."] if cells and len(cells[0]) > 1 else []
    whole = next((row for row in found if row.variant.name == BARE and row.gain is not None), None)
    if whole is not None and whole.gain is not None:
        said.append(f"All parts together make it {_times(whole.gain.ratio)} the reference plan.")
    same = [_part(row) for row in found if row.variant.group == OFF and _changes_nothing(row)]
    said += list(_bought(off, same))
    said += list(_slowing(off)) + list(_added(added))
    said += list(_costing(found))
    return " ".join(said) or "Nothing could be compared."


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times slower than"


def _changes_nothing(row: Row) -> bool:
    return str(row.values["reason"]).startswith(SAME)


def _bought(off: Sequence[Row], same: Sequence[str]) -> Iterator[str]:
    helping = sorted(
        (row for row in off if row.gain and row.gain.shows and row.gain.ratio > 1), key=_ratio, reverse=True
    )
    if helping:
        yield f"{_list([_named(row) for row in helping[:1]])} buys most{_beside(helping[1:])}."
    idle = [_part(row) for row in off if row.gain and not row.gain.shows] + list(same)
    if idle:
        yield f"Nothing that shows: {_list(idle)}."


def _beside(rest: Sequence[Row]) -> str:
    return f", then {_list([_named(row) for row in rest[:4]])}" if rest else ""


def _slowing(off: Sequence[Row]) -> Iterator[str]:
    slow = sorted((row for row in off if row.gain and row.gain.shows and row.gain.ratio < 1), key=_ratio)
    if slow:
        told = [f"{_part(row)} ({1 / _ratio(row) - 1:.1%} faster without)" for row in slow]
        yield f"Slowing things down: {_list(told)}."


def _added(added: Sequence[Row]) -> Iterator[str]:
    faster = [row for row in added if row.gain and row.gain.shows and row.gain.ratio > 1 and row.variant.base == ALL]
    slower = [row for row in added if row.gain and row.gain.shows and row.gain.ratio < 1]
    if faster:
        best = sorted(faster, key=_ratio, reverse=True)
        yield f"Of the formats, {_list([_named(row) for row in best[:3]])} would make it faster still."
    if slower:
        worst = sorted(slower, key=_ratio)
        yield f"Formats that are slower here: {_list([_named(row) for row in worst])}."


def _costing(found: Sequence[Row]) -> Iterator[str]:
    """Parts that move the distributions by more than chance, from the worst, by the word of the side that has them."""
    costing = [row for row in found if row.variant.parts and _costs_quality(row)]
    costing.sort(key=lambda row: row.values["kl_cost"], reverse=True)
    words = {row.variant.name: _word(row, found) for row in costing}
    bad = [row for row in costing if words[row.variant.name] == DEGRADED]
    little = [row for row in costing if words[row.variant.name] == CLOSE]
    leaking = [_part(row) for row in found if row.variant.parts and _leaks(row, found)]
    if leaking:
        yield f"LEAKING, far more than rounding in its format explains: {_list(list(dict.fromkeys(leaking)))}."
    for rows, told in ((bad, "Costing quality"), (little, "Costing little")):
        if rows:
            each = [f"{_part(row)} (KL {row.values['kl_cost']:.1e}, {words[row.variant.name]})" for row in rows]
            yield f"{told}: {_list(list(dict.fromkeys(each)))}."


def _costs_quality(row: Row) -> bool:
    interval = row.values["kl_cost_interval"]
    return interval is not None and interval[0] is not None and interval[0] > 0 and row.values["kl_cost"] > 0


def _leaks(row: Row, found: Sequence[Row]) -> bool:
    """Whether the part is what leaks: the side with it does, the side without does not."""
    base = next((one for one in found if one.variant.name == row.variant.base), None)
    sides = bool(row.values["leaks"]), base is not None and bool(base.values["leaks"])
    having, lacking = sides[::-1] if row.variant.group == OFF else sides
    return having and not lacking


def _word(row: Row, found: Sequence[Row]) -> str:
    """The verdict of the side with the part; the better word where the other side is no better."""
    by_name: Mapping[str, Row] = {one.variant.name: one for one in found}
    own, base = row.values["verdict"], by_name[row.variant.base or ""].values["verdict"]
    having, lacking = (base, own) if row.variant.group == OFF else (own, base)
    if WORDS.index(having) < WORDS.index(lacking) or having == DEGRADED:
        return str(having)
    return CLOSE if having == CLOSE else ""


def _part(row: Row) -> str:
    """The part that a row is about; in a preset the row's own name says it."""
    return row.variant.name.removeprefix("+ ") if row.variant.group == STEPS else row.variant.parts[0]


def _named(row: Row) -> str:
    beside = "" if row.variant.group != PLUS or row.variant.base == ALL else f" the speed of {row.variant.base}"
    return f"{_part(row)} (×{_ratio(row):.2f}{beside})"


def _ratio(row: Row) -> float:
    return row.gain.ratio if row.gain is not None else 1.0


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _short(value: Any) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
