"""One ablation from start to end: build the variants, judge what they say, measure them in turn, compare."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allotrope.ablate import parts as of_parts
from allotrope.ablate import variants as of_variants
from allotrope.ablate.quality import Original, Quality
from allotrope.ablate.setting import Setting
from allotrope.ablate.sharing import share
from allotrope.ablate.speed import MOST, RAISED, Cell, Rounds, Runner
from allotrope.ablate.variants import ALL, Variant
from allotrope.artifact import manifest
from allotrope.artifact.manifest import Manifest
from allotrope.build import cache
from allotrope.build.builder import Progress
from allotrope.build.options import BuildOptions
from allotrope.build.tune import Checked
from allotrope.hw.detect import detect
from allotrope.runtime.options import RuntimeOptions

SAME = "nothing changes"  # how a reason begins where a part makes no difference at all
BUDGET_S = 95.0  # for all of it, where nobody says how many rounds; what building and judging leave is for rounds


@dataclass(frozen=True)
class Question:
    """What an ablation is asked."""

    checkpoint: str
    whole: Setting
    hints: Mapping[str, Any]  # options of quantising, for formats that are added
    cells: tuple[Cell, ...]
    parts: tuple[str, ...] = ()
    preset: str | None = None
    rounds: int | None = None
    text: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """A variant's engine, and what building it took."""

    folder: Path
    described: Manifest
    seconds: float
    peak_memory_bytes: int


@dataclass
class Findings:
    """What there is so far; an interrupted ablation has less of it."""

    asked: Question
    variants: Sequence[Variant] = ()
    notes: dict[str, str] = field(default_factory=dict)  # what came with a part
    made: dict[str, Made] = field(default_factory=dict)  # by variant
    reasons: dict[str, str] = field(default_factory=dict)  # why a variant has no figures
    quality: dict[str, Quality] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)
    rounds: int = 0
    text: str = ""
    positions: int = 0
    interrupted: bool = False
    seconds: float = 0.0


class Ablation:
    """Finds all that a question asks. After an interrupt `found` holds what was finished."""

    def __init__(self, asked: Question, progress: Progress, said: Callable[[str], None]) -> None:
        self.found = Findings(asked)
        self._progress, self._said = progress, said
        self._checked: Checked = {}
        self._began = time.perf_counter()

    def run(self) -> Findings:
        """All of it, or as much as there was before Ctrl-C."""
        found = self.found
        whole = self._build(found.asked.whole)  # what cannot be built at all is an error, not a row
        found.variants = _variants(found.asked, whole.described)
        try:
            self._build_all(whole)
            self._judge_all()
            self._measure_all()
        except KeyboardInterrupt:
            found.interrupted = True
        found.seconds = time.perf_counter() - self._began
        return found

    def _build(self, setting: Setting) -> Made:
        options = BuildOptions.of(**setting.build)
        folder = cache.cached(self.found.asked.checkpoint, options, self._progress, self._checked)
        described = manifest.read(folder)
        evidence = described.evidence
        return Made(folder, described, float(evidence["seconds"]), int(evidence["peak_memory_bytes"]))

    def _build_all(self, whole: Made) -> None:
        found, known = self.found, dict[str, Made]()
        known[_of_build(found.asked.whole)] = whole
        todo = [variant for variant in found.variants if variant.reason is None]
        found.reasons.update({variant.name: variant.reason for variant in found.variants if variant.reason})
        with self._progress(len(todo), "building variants") as shown:
            for variant in todo:
                key = _of_build(variant.setting)
                try:
                    if key not in known:
                        known[key] = self._build(variant.setting)
                        share(known[key].folder, known[key].described, self._others(known[key]))
                    made = known[key]
                except RAISED as error:
                    self._fail(variant.name, _words(error))
                else:
                    found.made[variant.name] = made
                    self._same(variant, made)
                shown.advance()

    def _others(self, made: Made) -> list[tuple[Path, Manifest]]:
        """Engines that were made before."""
        return [(one.folder, one.described) for one in self.found.made.values() if one.folder != made.folder]

    def _same(self, variant: Variant, made: Made) -> None:
        """Where taking a part out changes nothing, there is nothing to measure; where it changes more, that is said."""
        base = self.found.made.get(variant.base or "")
        if base is None or variant.again or base.folder == made.folder:
            return
        kinds = [one.described.evidence["executor"]["kind"] for one in (made, base)]
        if kinds[0] != kinds[1]:
            self.found.notes[variant.name] = f"it runs {kinds[0]}, {variant.base} {kinds[1]}"
        running = next(one.setting.running for one in self.found.variants if one.name == variant.base)
        if base.described.plan == made.described.plan and running == variant.setting.running:
            self.found.reasons[variant.name] = f"{SAME}: the plan is that of {variant.base}"

    def _judge_all(self) -> None:
        found = self.found
        todo = [name for name in found.made if name not in found.reasons]
        first = next(iter(found.made.values()))
        asked = found.asked
        device = detect(str(first.described.device["kind"]))
        judged: dict[Path, Quality] = {}
        with self._progress(len(todo) + 1, "comparing with the original") as shown:
            original = Original(
                asked.checkpoint if not asked.seed else _seeded(asked),
                device,
                first.described.dtype,
                text=asked.text,
                seed=asked.seed,
                allow_pickle=bool(asked.whole.build.get("allow_pickle")),
            )
            found.text, found.positions = original.source, original.positions
            shown.advance()
            for name in todo:
                folder = found.made[name].folder
                try:
                    judged[folder] = judged.get(folder) or original.judge(folder)
                except RAISED as error:
                    self._fail(name, _words(error))
                else:
                    found.quality[name] = judged[folder]
                shown.advance()

    def _measure_all(self) -> None:
        found, asked = self.found, self.found.asked
        names = [variant.name for variant in found.variants if variant.name in found.quality]
        by_name = {variant.name: variant for variant in found.variants}
        for name in names:
            options = RuntimeOptions(**_running(by_name[name].setting, asked.cells, found.made[name].described))
            found.runners[name] = Runner(name, found.made[name].folder, options)
        rounds = Rounds(list(found.runners.values()), asked.cells, asked.seed, self._fail)
        total = len(names) * (1 + (asked.rounds or MOST))
        try:
            with self._progress(total, "measuring in turn") as shown:
                rounds.run(asked.rounds, self._began + BUDGET_S, shown.advance)
        finally:
            whole = [runner for runner in found.runners.values() if runner.failed is None]
            found.rounds = min((len(s) for runner in whole for s in runner.samples.values()), default=0)
            rounds.close()

    def _fail(self, name: str, reason: str) -> None:
        self.found.reasons[name] = reason
        self._said(f"{name}: {reason}")


def _seeded(asked: Question) -> str:
    from allotrope.build.builder import seeded

    return seeded(asked.checkpoint, BuildOptions.of(**asked.whole.build))


def _variants(asked: Question, whole: Manifest) -> list[Variant]:
    if asked.preset == of_variants.LLAMA:
        ops = list(dict.fromkeys(call.op for call in whole.plan.calls))
        return of_variants.llama_report(asked.whole, ops, asked.hints)
    if asked.preset == of_variants.GPT:
        return of_variants.gpt_report(asked.whole)
    known = of_parts.parts(whole, asked.whole, asked.hints)
    return of_variants.usual(asked.whole, of_parts.chosen(known, asked.parts))


def _running(setting: Setting, cells: Sequence[Cell], described: Manifest) -> dict[str, Any]:
    """Room for the largest cell and no more."""
    longest = max(cell.input + cell.output for cell in cells)
    most = int(described.limits["max_len"])
    given = {"max_num_seqs": max(cell.batch for cell in cells), "max_len": min(longest, most)}
    return {**given, **setting.running}


def _of_build(setting: Setting) -> str:
    return json.dumps(dict(setting.build), sort_keys=True, default=str)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def engine_of(found: Findings) -> Path | None:
    """The engine with all parts, or the last there is."""
    made = found.made.get(ALL) or next(reversed(found.made.values()), None)
    return None if made is None else made.folder
