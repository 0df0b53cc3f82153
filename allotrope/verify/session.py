"""One verification from start to end: open both sides, ask the levels in order, write down what they found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from allotrope import settings, tokenizers
from allotrope.artifact import manifest, results
from allotrope.artifact.engine import Engine, open_engine
from allotrope.artifact.plan import Plan
from allotrope.build.builder import Progress, silent
from allotrope.errors import CheckpointError, TokenizerError, UsageError
from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.models.model import Model, open_model
from allotrope.ops import check
from allotrope.runtime.eager import settle_torch
from allotrope.tokenizers import Tokenizer
from allotrope.verify import question
from allotrope.verify.attribute import attribute, steps
from allotrope.verify.distributions import compare_logits, compare_tokens
from allotrope.verify.drive import Driver
from allotrope.verify.effective import Effective, Stored, formats, is_quantised
from allotrope.verify.folds import Folds
from allotrope.verify.layers import accused, first_wrong, record_inputs, walk_blocks, walk_ops
from allotrope.verify.oracle import LOGITS, Oracle, Values
from allotrope.verify.original import FINER, oracle
from allotrope.verify.places import Places, block_probes
from allotrope.verify.prompts import TEXTS, Prompt, default_prompts, read_prompts
from allotrope.verify.quantisers import Quantisers
from allotrope.verify.records import Attribution, Check, Cost, Layers, Logits, Preflight, Tokens
from allotrope.verify.shifts import Shifts
from allotrope.verify.structure import check_structure
from allotrope.verify.verdict import LEVELS, Findings, cost_word, default_requirement, enough
from allotrope.verify.weights import check_digests, check_weights, recorded

FILE = "verify.json"


@dataclass(frozen=True)
class Question:
    """What a verification is asked. `original` None: the source that the engine records."""

    original: str | None = None
    levels: tuple[str, ...] = LEVELS
    locate: bool = False
    prompts: Path | None = None
    new_tokens: int = 32
    seed: int = 0
    device: str = "auto"
    allow_pickle: bool = False
    attribute: bool = False  # of a quantised engine: which modules cost what
    require: str | None = None  # the least good word; None: what its precision allows
    threads: int | None = None  # CPU threads of engine and original; None: ALLOTROPE_THREADS, or torch's choice

    def __post_init__(self) -> None:
        unknown = [level for level in self.levels if level not in LEVELS]
        if unknown or not self.levels:
            raise UsageError(f"no level {unknown[0] if unknown else ''!r}", remedy=f"levels are {', '.join(LEVELS)}")
        if not 1 <= self.new_tokens <= 4096:
            raise UsageError(f"{self.new_tokens} new tokens", remedy="ask for 1 to 4096")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UsageError(f"--threads is {self.threads}", remedy="give a number from 1 to 1024")


@dataclass(frozen=True)
class Result:
    """The findings and what they were found with."""

    findings: Findings
    environment: dict[str, Any]
    prompts: tuple[Prompt, ...]
    original: str
    seconds: float
    required: str  # the least good word
    kept: bool = True  # in the engine's folder, which may be read-only

    @property
    def passed(self) -> bool:
        """Whether the verdict is good enough."""
        return enough(self.findings.verdict, self.required)

    def to_json(self) -> dict[str, Any]:
        """Everything shown, and the environment beside it."""
        return {
            **self.findings.to_json(),
            "required": self.required,
            "passed": self.passed,
            "dtype": self.findings.dtype,
            "original": self.original,
            "prompts": [{"name": prompt.name, "tokens": len(prompt.ids), "new": prompt.new} for prompt in self.prompts],
            "environment": self.environment,
            "seconds": round(self.seconds, 3),
        }


def verify(
    path: Path | str,
    asked: Question,
    said: Callable[[str], None] = lambda _: None,
    progress: Progress = silent,
    *,
    command: str | None = None,
) -> Result:
    """Verify the engine at `path`; `said` hears of each stage.

    The result is also kept in the engine's folder, with the `command` that asked for it.
    """
    began = time.perf_counter()
    session = _Session(Path(path), asked)
    found: dict[str, Any] = {}
    for level in LEVELS:  # in this order, whatever the order asked
        if level in asked.levels:
            said(level)
            found[level] = getattr(session, level)()
    if session.formats and "logits" in asked.levels:
        said("cost")
        found["cost"] = session.cost()
    if asked.attribute:
        found["attribution"] = session.attribution(progress)
    result = Result(
        Findings(session.dtype, **found, formats=session.formats),
        session.environment(),
        session.prompts,
        session.model.checkpoint.origin,
        time.perf_counter() - began,
        asked.require or default_requirement(session.dtype, quantised=bool(session.formats)),
    )
    folder = Path(path)
    shown = {"engine": str(path), **result.to_json()}
    try:
        results.write(folder / FILE, {**shown, **results.stamp(folder, command), "samples": {}})
    except OSError:
        return replace(result, kept=False)
    return result


class _Session:
    """Both sides, opened, and what several levels need, computed once."""

    def __init__(self, path: Path, asked: Question) -> None:
        self.asked = asked
        settle_torch(asked.threads or settings.threads())
        kind = manifest.read(path).device.get("kind") if asked.device == "auto" else asked.device
        self.device: Device = detect(str(kind))
        self.engine: Engine = open_engine(path, device=self.device)
        self.dtype = self.engine.manifest.dtype
        self.plan = self.engine.manifest.plan
        self.model = open_original(self.engine, asked.original, allow_pickle=asked.allow_pickle)
        self.formats = formats(self.plan) if is_quantised(self.plan) else ()
        if asked.attribute and not self.formats:
            raise UsageError("nothing in it is quantised, so there is nothing to attribute", where=str(path))
        check_alike(self.model, self.plan)
        self.tokenizer, self._readable = _tokenizer(self.engine)
        self._quantisers = Quantisers(self.plan, self.model.family, self.model.recipe)

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, none longer than both sides are the same model for."""
        limit = int(self.engine.manifest.limits["max_len"])
        trained = self.model.family.oracle.max_len(self.model.config)
        limit = limit if trained is None else min(limit, trained)
        asked = self.asked
        if asked.prompts is not None:
            return read_prompts(asked.prompts, self.tokenizer, self.plan.vocab, limit, asked.new_tokens)
        return default_prompts(self.tokenizer, self.plan.vocab, limit, asked.seed, asked.new_tokens)

    def preflight(self) -> Preflight:
        """Whether both are asked the same question, of the same weights."""
        checks = [
            check_digests(self.engine),
            check_structure(self.plan, self.model.family, self.model.recipe, self._skeleton),
            check_weights(self.engine, self.model),
            question.check_generation(self.engine, self.model, self.tokenizer),
            question.check_length(self.engine, self.model),
            self._readable,
            *question.check_tokens(self.tokenizer, self.model, TEXTS),
        ]
        return Preflight(tuple(checks))

    def layers(self) -> Layers:
        """The walk over all blocks, then over the ops of those accused (with `locate`: of all)."""
        truth, same, quantisers = self._truth, self._same, self._quantisers
        rows = walk_blocks(self._driver, self.plan, truth, same, self._sequences, self._plain, quantisers)
        # A block's row tells nothing of what lies between two places where both sides were given the same values.
        chosen = [row.block for row in rows] if self.asked.locate or quantisers else accused(rows)[:1]
        if not chosen:
            return Layers(rows)
        places = Places(self.plan, self.model.family, self.model.recipe, truth, chosen)
        ops = walk_ops(self._driver, places, truth, same, self._sequences, quantisers)
        return Layers(rows, ops, first_wrong(rows, ops))

    def logits(self) -> Logits:
        """Distributions over the same text."""
        engine = self._driver.walk(self._sequences)
        return compare_logits(engine, self._plain[LOGITS], self._same_plain, self._sequences)

    def tokens(self) -> Tokens:
        """The engine's own greedy text, judged token by token."""
        found = self._judged(*self._by_prompt)
        if found.ok or not self._quantisers:
            return found
        # A last bit may have moved a code before. Would the original say so, had it rounded the engine's own values?
        given = record_inputs(self._driver, self._quantisers, self._sequences, self.device.torch_name)
        probes = self._quantisers.probes
        sides = (side.walk(self._sequences, probes, given=given)[LOGITS] for side in (self._truth, self._same))
        followed = self._judged(*(self._cut(logits) for logits in sides))
        return followed if followed.ok else found

    def _judged(self, truths: list[torch.Tensor], sames: list[torch.Tensor]) -> Tokens:
        """The text beside the original's logits, sequence by sequence."""
        rows = [
            slice(len(prompt.ids) - 1, len(prompt.ids) - 1 + len(text))
            for prompt, text in zip(self.prompts, self._texts, strict=True)
        ]
        right, near = ([logits[row] for logits, row in zip(side, rows, strict=True)] for side in (truths, sames))
        return compare_tokens(self.prompts, self._texts, right, near, self.dtype)

    def cost(self) -> Cost:
        """What the formats lose: the engine beside the original with the checkpoint's own weights."""
        engine = self._driver.walk(self._texts_only)
        original = oracle(self.model, FINER[self.dtype], self.device)
        truth = original.walk(self._texts_only, {})[LOGITS]
        same = oracle(self.model, self.dtype, self.device, finer=original).walk(self._texts_only, {})[LOGITS]
        within = check.within(check.compare(engine, truth), check.compare(same, truth), self.dtype) is None
        figures = compare_logits(engine, truth, same, self._texts_only)
        return Cost(cost_word(figures, within), figures)

    def attribution(self, progress: Progress) -> Attribution:
        """Which modules cost what."""
        sequences = self._texts_only
        for held in ("_truth", "_same"):  # whole models, whose memory a third one may need
            self.__dict__.pop(held, None)
        stored = Stored(self.engine)
        folds = Folds(stored, self.model, recorded(self.engine))
        with progress(steps(stored), "attributing") as shown:

            def installed(original: Oracle, active: Callable[[str], bool]) -> Oracle:
                return self._quantisers.install(Shifts(self.engine, self.model).install(original), active)

            return attribute(stored, self.model, folds, installed, self.device, sequences, shown.advance)

    @cached_property
    def _by_prompt(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The original's logits in both precisions, sequence by sequence.

        A rotary base that follows the length depends on how far the text had come when a token was
        computed, so there the original writes along, token by token.
        """
        if any(call.params.get("scaling") == "dynamic" for call in self.plan.calls):
            pairs = list(zip((prompt.ids for prompt in self.prompts), self._texts, strict=True))
            followed = [[side.follow(ids, text[:-1]) for ids, text in pairs] for side in (self._truth, self._same)]
            return followed[0], followed[1]
        return self._cut(self._plain[LOGITS]), self._cut(self._same_plain)

    def _cut(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """The logits of all sequences, sequence by sequence."""
        return list(torch.split(logits, [len(ids) for ids in self._sequences]))

    @cached_property
    def _skeleton(self) -> Oracle:
        """An oracle to look at; the truth itself if it will be walked anyway and has the checkpoint's own weights."""
        walks = set(self.asked.levels) - {"preflight"} and not self.formats
        return self._truth if walks else oracle(self.model, FINER[self.dtype], self.device, resident=False)

    @cached_property
    def _truth(self) -> Oracle:
        """The original; with the weights that a quantised engine means, rounding where it rounds."""
        precision = FINER[self.dtype]
        meant = Effective(Stored(self.engine), self.model).loaders(precision) if self.formats else None
        return self._installed(oracle(self.model, precision, self.device, weights=meant))

    @cached_property
    def _same(self) -> Oracle:
        meant = Effective(Stored(self.engine), self.model).loaders(self.dtype) if self.formats else None
        return self._installed(oracle(self.model, self.dtype, self.device, finer=self._truth, weights=meant))

    def _installed(self, original: Oracle) -> Oracle:
        """With the constants that were taken off the keys, and with the engine's quantisers."""
        return self._quantisers.install(Shifts(self.engine, self.model).install(original))

    @cached_property
    def _driver(self) -> Driver:
        longest = max(len(prompt.ids) + prompt.new for prompt in self.prompts)
        tokens = sum(len(prompt.ids) + prompt.new for prompt in self.prompts)
        return Driver(self.engine, self.device, sequences=len(self.prompts), longest=longest, tokens=tokens)

    @cached_property
    def _texts(self) -> list[list[int]]:
        return self._driver.greedy([prompt.ids for prompt in self.prompts], [prompt.new for prompt in self.prompts])

    @cached_property
    def _sequences(self) -> list[tuple[int, ...]]:
        """Each prompt with what the engine says after it; the last token drawn is never read."""
        return [prompt.with_text(text[:-1]) for prompt, text in zip(self.prompts, self._texts, strict=True)]

    @cached_property
    def _texts_only(self) -> list[tuple[int, ...]]:
        """What costs are measured on: texts, if there are any, for on random ids a model is at a loss anyway."""
        found = [ids for prompt, ids in zip(self.prompts, self._sequences, strict=True) if not prompt.random]
        return found or self._sequences

    @cached_property
    def _plain(self) -> Values:
        return self._truth.walk(self._sequences, block_probes(self._truth))

    @cached_property
    def _same_plain(self) -> torch.Tensor:
        return self._same.walk(self._sequences, {})[LOGITS]

    def environment(self) -> dict[str, Any]:
        """What the figures were found with."""
        return {
            **results.environment(self.device, self.engine),
            "seed": self.asked.seed,
            "truth": FINER[self.dtype],
            "source_digest": self.engine.manifest.source.get("digest"),
        }


def open_original(engine: Engine, named: str | None, *, allow_pickle: bool = False) -> Model:
    """The checkpoint that an engine is to be compared with; the recorded one must not have changed since."""
    if named is not None:
        folder = Path(named)
        ref = str(manifest.read(folder).source["path"]) if (folder / manifest.FILE).is_file() else named
        return open_model(ref, allow_pickle=allow_pickle)
    source = engine.manifest.source
    remedy = "name where it is now with --original"
    try:
        model = open_model(str(source["path"]), allow_pickle=allow_pickle)
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(
            f"the engine's original cannot be read: {error.problem}", where=error.where, remedy=remedy
        ) from error
    if model.checkpoint.digest() != source["digest"]:
        raise CheckpointError(
            "it has changed since the engine was built from it",
            where=str(source["path"]),
            remedy="build again, or name the unchanged original with --original",
        )
    return model


def check_alike(model: Model, plan: Plan) -> None:
    """Refuse an original that cannot be the engine's."""
    if model.recipe.vocab != plan.vocab or len(model.recipe.blocks) != plan.cache.layers:
        raise UsageError(
            f"{model.checkpoint.origin} is another model: {len(model.recipe.blocks)} blocks and "
            f"{model.recipe.vocab} tokens, the engine has {plan.cache.layers} and {plan.vocab}",
            remedy="name the engine's own original with --original",
        )


def _tokenizer(engine: Engine) -> tuple[Tokenizer | None, Check]:
    """The engine's tokenizer, and whether it can be read at all."""
    name = "tokenizer"
    if not engine.tokenizer_dir.is_dir() or not any(engine.tokenizer_dir.iterdir()):
        return None, Check(name, None, "the engine has none")
    try:
        found = tokenizers.load(engine.tokenizer_dir, engine.manifest.plan.vocab)
    except TokenizerError as error:
        return None, Check(name, False, str(error))
    return found, Check(name, True, f"{found.kind}, {found.vocab_size} ids")
