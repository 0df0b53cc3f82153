"""The parts of an engine that can be taken out, or put into a bare one, as the builder offers them on this device."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.ablate.setting import REFERENCE, Change, Setting
from allotrope.artifact.manifest import Manifest
from allotrope.build.fuse import FUSIONS
from allotrope.errors import UsageError
from allotrope.ops import registry
from allotrope.ops.kv_rows import CODED, NARROW
from allotrope.quant.formats import NAMES

FUSED, TACTICS, TUNING, STEP, LATE, PREFIX = "fusions", "tactics", "tuning", "step", "late-stop", "prefix-cache"
WEIGHTS, ACTIVATIONS, KV = "weights", "activations", "kv"
WHOLES = (TACTICS, FUSED, STEP, LATE, WEIGHTS, ACTIVATIONS, KV)  # parts that share nothing; all others lie in these
EAGER = "eager"  # the executor that captures no step
OF_WEIGHTS = ("group_size", "asymmetric", "method", "max_kl", "calibration", "calibration_tokens")
STORES = ("bf16", "fp16")
FORMS = (*NAMES, *STORES)
_CALIBRATED = 512  # tokens that activations are smoothed on, where nobody says how many


@dataclass(frozen=True)
class Part:
    """One part. `off` takes it out of the whole, `alone` puts it into a bare plan, `plus` adds it to the whole.

    `reason` says why it is not there to be tried, `not_alone` why it means nothing in a bare plan.
    """

    name: str
    off: Change | None = None
    alone: Change | None = None
    plus: Change | None = None
    reason: str | None = None
    not_alone: str | None = None
    note: str = ""
    usual: bool = True  # tried where no parts are named
    beside: str | None = None  # the part that `plus` is compared with instead of the whole


def parts(whole: Manifest, setting: Setting, hints: Mapping[str, Any]) -> list[Part]:
    """Every part there is, in the order in which rows stand. `whole` is what the builder made with all of them.

    `hints` are options of quantising that were asked for, for formats that are added.
    """
    found = [*_fusions(whole), *_tactics(whole, setting), *_running(whole, setting), *_inside(setting)]
    found += _added(whole, setting, hints)
    return list({part.name: part for part in found}.values())


def chosen(known: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """The parts named, or the usual ones. One that could be elsewhere and is not here is there with that reason."""
    if not names:
        return [part for part in known if part.usual]
    by_name = {part.name: part for part in known}
    absent = "the engine that the builder made here has no such part"
    return [by_name.get(name) or Part(name, reason=absent) for name in dict.fromkeys(names)]


def check(names: Sequence[str]) -> None:
    """A UsageError that suggests the nearest, unless every name is that of a part that some engine may have."""
    tactics = [f"{op}/{one.name}" for op in registry.names() for one in registry.tactics(op)]
    known = [*(fusion.name for fusion in FUSIONS), *WHOLES, TUNING, PREFIX]
    known += [f"{WEIGHTS}={form}" for form in FORMS]
    known += [f"{what}={form}" for what, forms in ((ACTIVATIONS, CODED), (KV, NARROW)) for form in forms]
    known += [
        *registry.names(),
        *(f"{library}-kernels" for op in registry.names() for library in registry.libraries(op)),
    ]
    for name in names:
        if name not in known and name not in tactics:
            near = difflib.get_close_matches(name, [*known, *tactics], n=1)
            remedy = f"did you mean {near[0]}?" if near else f"parts are {', '.join(dict.fromkeys(known))}"
            raise UsageError(f"no part {name[:60]!r} to take out", where="--parts", remedy=remedy)


def _fusions(whole: Manifest) -> Iterator[Part]:
    """Each rewrite by its name, and all of them."""
    inside = whole.plan.fusions
    told: Mapping[str, str] = whole.evidence["fusions"]
    for fusion in FUSIONS:
        if fusion.name in inside:
            one = (fusion.name,)
            yield Part(fusion.name, Change({"without": one}), Change({"plus": _needed(fusion.name, inside)}))
        else:
            yield Part(fusion.name, reason=told.get(fusion.name, "the builder did not try it").removeprefix("not in: "))
    why = None if len(inside) > 1 else f"no fusion is in but {inside[0]}" if inside else "no fusion is in"
    yield Part(FUSED, Change({"without": inside}), Change({"plus": inside}), reason=why)


def _needed(name: str, inside: Sequence[str]) -> tuple[str, ...]:
    """A fusion with those that it stands on: queries and keys are rotated together where they are neighbours."""
    return ("qkv", name) if name == "qk_rotary" and "qkv" in inside else (name,)


def _tactics(whole: Manifest, setting: Setting) -> Iterator[Part]:
    """All tactics, the choice among them, those of each op and of each library beside torch."""
    used: dict[str, list[str]] = {}
    for call in whole.plan.calls:
        used.setdefault(call.op, []).extend(name for _, name in call.tactics)
    inside, all_fusions = whole.plan.fusions, tuple(fusion.name for fusion in FUSIONS)
    bare = Change({"plan": REFERENCE, "without": (), "plus": inside})
    tuned = {name: setting.build[name] for name in ("tune", "allow_batch_variance") if name in setting.build}
    yield Part(TACTICS, bare, Change({"plan": "best", "without": all_fusions, **tuned}))
    why = "--tune off: the listing decided, nothing was timed" if setting.build.get("tune") == "off" else None
    nothing = "a bare plan has one way for each op: nothing to choose from"
    yield Part(TUNING, Change({"tune": "off"}), reason=why, not_alone=nothing)
    for op, names in used.items():
        usual = op == "attention"
        yield Part(op, Change({"without": (op,)}), Change({"plus": (op,), **tuned}), usual=usual or op == "linear")
        for name in dict.fromkeys(names):
            inner = f"{op}/{name}"
            note = f"beside its runner-up; for {op}'s reference see {op}"
            yield Part(inner, Change({"without": (inner,)}), None, not_alone=f"see {op}", usual=usual, note=note)
    for library in dict.fromkeys(name.partition("_")[0] for names in used.values() for name in names):
        if library not in ("torch", REFERENCE):
            own = tuple(f"{op}/{one.name}" for op in used for one in registry.tactics(op) if _of(one.name, library))
            yield Part(f"{library}-kernels", Change({"without": own}), Change({"plus": own, **tuned}))


def _of(name: str, library: str) -> bool:
    return name.partition("_")[0] == library


def _running(whole: Manifest, setting: Setting) -> Iterator[Part]:
    """How the engine is run: the step as one call, looking late whether requests have ended, kept prefixes."""
    executor, running = whole.evidence["executor"], setting.running
    why = None
    if executor["kind"] == EAGER or running.get("executor") == EAGER:
        told = executor.get("not_native") or f"its calls are made one by one on a {whole.device['kind']}"
        why = "no step is captured: " + ("--executor eager" if executor["kind"] != EAGER else told)
    nothing = "references cannot be captured: they take memory as they like"
    yield Part(STEP, Change({}, {"executor": EAGER}), reason=why, not_alone=nothing)
    steps = {name: running[name] for name in ("check_step", "skip_step")}
    note = f"looked at every {steps['check_step']} steps" + (f" after {steps['skip_step']}" * bool(steps["skip_step"]))
    each = steps == {"check_step": 1, "skip_step": 0}
    why = "--check-step 1: every step is looked at" if each else None
    off = Change({}, {"check_step": 1, "skip_step": 0})
    yield Part(LATE, off, Change({}, steps), reason=why, note=note)
    note = "prompts here share no beginning: this is what looking for one costs"
    yield Part(PREFIX, Change({}, {"prefix_cache": False}), None, not_alone="it is on there", note=note, usual=False)


def _inside(setting: Setting) -> Iterator[Part]:
    """The formats that the whole has."""
    build = setting.build
    wide = {WEIGHTS: None, ACTIVATIONS: None, **dict.fromkeys(OF_WEIGHTS), "method": "auto", "asymmetric": False}
    if build.get(WEIGHTS):
        own = {name: build[name] for name in (WEIGHTS, *OF_WEIGHTS, "keep") if build.get(name)}
        yield Part(WEIGHTS, Change({**wide, "keep": ()}), Change(own), note=str(build[WEIGHTS]))
    if build.get(ACTIVATIONS):
        why = "they need weights in the same format"
        yield Part(ACTIVATIONS, Change({ACTIVATIONS: None}), not_alone=why, note=str(build[ACTIVATIONS]))
    if build.get(KV):
        yield Part(KV, Change({KV: None}), Change({KV: build[KV]}), note=str(build[KV]))


def _added(whole: Manifest, setting: Setting, hints: Mapping[str, Any]) -> Iterator[Part]:
    """The formats that the whole has not."""
    inside = {name: setting.build.get(name) for name in (WEIGHTS, ACTIVATIONS, KV)}
    for form in FORMS:
        if form not in (inside[WEIGHTS], whole.dtype):
            change, how = _weights(form, hints)
            yield Part(f"{WEIGHTS}={form}", plus=change, usual=not inside[WEIGHTS], note=how)
    for form in CODED:
        if inside[ACTIVATIONS] != form:
            change, how = _weights(form, {"calibration_tokens": _CALIBRATED, **hints})
            how += f", on {change.build['calibration_tokens']} tokens"
            change, usual = Change({**change.build, ACTIVATIONS: form}), form == "int8" and not inside[WEIGHTS]
            beside = f"{WEIGHTS}={form}" if inside[WEIGHTS] != form else None
            yield Part(f"{ACTIVATIONS}={form}", plus=change, usual=usual, note=how, beside=beside)
    for form in NARROW:
        if inside[KV] != form:
            yield Part(f"{KV}={form}", plus=Change({KV: form}), usual=not inside[KV])


def _weights(form: str, hints: Mapping[str, Any]) -> tuple[Change, str]:
    """Weights in a format, and how: to nearest unless a method was asked for, since calibrating takes minutes."""
    if form in STORES:
        return Change({WEIGHTS: form}), ""
    given = {"method": "nearest", **hints, WEIGHTS: form}
    if form != "int4":
        given = {name: value for name, value in given.items() if name not in ("asymmetric", "group_size")}
    return Change(given), f"by {given['method']}"
