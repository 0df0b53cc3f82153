"""Which engines are compared with which: the whole, each part off, each part alone, formats added; and two presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.ablate.parts import KV, LATE, WEIGHTS, Part
from allotrope.ablate.setting import Change, Setting

ALL, BARE = "all on", "reference"
_AGAIN = ", again"  # the first row once more: what differs is noise
WHOLE, OFF, ALONE, PLUS, STEPS = "whole", "off", "alone", "plus", "steps"  # the groups of rows
LLAMA, GPT = "llama-report", "gpt-report"
PRESETS = (LLAMA, GPT)
_LOOKS = ((0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (16, 1), (16, 4), (16, 8))  # skip, check: the GPT report's grid


@dataclass(frozen=True)
class Variant:
    """One row to be: an engine and how it is run, beside another row. `reason` is why there is nothing to measure."""

    name: str
    group: str
    setting: Setting
    parts: tuple[str, ...] = ()  # that are taken out (OFF) or added
    base: str | None = None
    reason: str | None = None
    note: str = ""

    @property
    def again(self) -> bool:
        """Whether it is the control."""
        return self.name.endswith(_AGAIN)


def _control(first: Variant) -> Variant:
    return Variant(first.name + _AGAIN, first.group, first.setting, base=first.name, note="what differs is noise")


def usual(whole: Setting, parts: Sequence[Part]) -> list[Variant]:
    """The whole twice, so that it is known what noise is; the bare plan; each part off, alone, or added."""
    first = Variant(ALL, WHOLE, whole)
    found = [
        first,
        _control(first),
        Variant(BARE, WHOLE, whole.bare, base=ALL, note="no part"),
    ]
    found += [
        Variant(f"without {part.name}", OFF, whole.but(part.off), (part.name,), ALL, part.reason, part.note)
        for part in parts
        if part.plus is None
    ]
    found += [
        Variant(f"only {part.name}", ALONE, whole.bare.but(part.alone), (part.name,), BARE, part.not_alone, part.note)
        for part in parts
        if part.plus is None and part.reason is None
    ]
    names = {part.name for part in parts}
    for part in parts:
        if part.plus is not None:
            base = f"with {part.beside}" if part.beside in names else ALL
            added = whole.but(part.plus)
            found.append(Variant(f"with {part.name}", PLUS, added, (part.name,), base, part.reason, part.note))
    return list(_distinct(found))


def llama_report(whole: Setting, ops: Sequence[str], hints: Mapping[str, Any]) -> list[Variant]:
    """The LLaMA-7B report's ablation, part after part: attention, int8 weights, int8 KV cache, matrix products.

    Its plug-ins are here the tuned tactics of attention and of the linear ops; what is left comes last.
    """
    linear = (*(op for op in ops if op.startswith("linear")), "linear_codes")
    tuned = {name: whole.build[name] for name in ("tune", "allow_batch_variance") if name in whole.build}
    weights = {name: value for name, value in hints.items() if name in ("method", "calibration", "calibration_tokens")}
    weights = {"method": "nearest", **weights, "weights": "int8"}
    rest = {"plan": "best", "plus": (), **tuned}
    stages = (
        ("+ attention", "attention", Change({"plus": ("attention",), **tuned})),
        ("+ int8 weights", WEIGHTS, Change(weights)),
        ("+ int8 KV cache", KV, Change({"kv": "int8"})),
        ("+ matrix products", "linear", Change({"plus": tuple(dict.fromkeys(linear))})),
        ("+ all else", "fusions, other tactics, captured step", Change(rest)),
    )
    setting, last = whole.bare, BARE
    first = Variant(BARE, WHOLE, setting, note="no part")
    found = [first, _control(first)]
    for name, part, change in stages:
        setting = setting.but(change)
        found.append(Variant(name, STEPS, setting, (part,), last, note=_note(part, weights)))
        last = name
    return found


def _note(part: str, weights: Mapping[str, Any]) -> str:
    return f"by {weights['method']}" if part == WEIGHTS else ""


def gpt_report(whole: Setting) -> list[Variant]:
    """The GPT report's table: so many steps are not looked at, and then every so many are, for requests that ended."""
    found = list[Variant]()
    for skip, check in _LOOKS:
        setting, name = whole.but(Change({}, {"skip_step": skip, "check_step": check})), f"skip {skip} check {check}"
        if found:
            found.append(Variant(name, STEPS, setting, (LATE,), found[0].name))
        else:
            first = Variant(name, WHOLE, setting, note="every step is looked at")
            found = [first, _control(first)]
    return found


def _distinct(found: Sequence[Variant]) -> Iterator[Variant]:
    """A setting that stands there already is not measured again, but for the control."""
    seen: dict[str, str] = {}
    for variant in found:
        key = variant.setting.key
        if variant.reason is None and not variant.again:
            if key in seen:
                yield Variant(
                    variant.name,
                    variant.group,
                    variant.setting,
                    variant.parts,
                    variant.base,
                    f"the same as {seen[key]}",
                    variant.note,
                )
                continue
            seen[key] = variant.name
        yield variant
