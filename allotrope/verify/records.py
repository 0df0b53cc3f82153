"""What verification finds, as plain records: each knows its JSON, none decides anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from allotrope.ops.check import ErrorStats


@dataclass(frozen=True)
class Located:
    """A place in the plan that is wrong, and what is wrong there."""

    block: str
    op: str
    path: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One question of the preflight. `ok` None: it could not be asked, and `detail` says why."""

    name: str
    ok: bool | None
    detail: str
    located: tuple[Located, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "located": [place.to_json() for place in self.located]}


@dataclass(frozen=True)
class Preflight:
    """Whether engine and original are asked the same question."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return all(check.ok is not False for check in self.checks)

    @property
    def located(self) -> tuple[Located, ...]:
        """Every place found."""
        return tuple(place for check in self.checks for place in check.located)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ok": self.ok, "checks": [check.to_json() for check in self.checks]}


@dataclass(frozen=True)
class BlockRow:
    """One block. Figures are absolute (`*_abs`) or relative to the truth's RMS.

    `total` is the error after the block when the engine runs by itself, `inherited` that before it;
    `injected` is what the block adds to an exact input, and `floor` what the original adds in the
    engine's dtype. `complaint` is None where the floor explains the injected error.
    """

    block: str
    total: ErrorStats
    inherited: ErrorStats | None
    injected: ErrorStats
    floor: ErrorStats
    complaint: str | None

    @property
    def mean_under_1e3(self) -> bool:
        """The old yardstick: a mean absolute error below 0.001."""
        return self.total.mean_abs < 1e-3

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        parts = {"total": self.total, "inherited": self.inherited, "injected": self.injected, "floor": self.floor}
        figures = {name: None if stats is None else asdict(stats) for name, stats in parts.items()}
        return {
            "block": self.block,
            **figures,
            "ok": self.complaint is None,
            "complaint": self.complaint,
            "mean_under_1e-3": self.mean_under_1e3,
        }


@dataclass(frozen=True)
class OpRow:
    """One op, given the original's own inputs."""

    path: str
    op: str
    block: str
    error: ErrorStats
    floor: ErrorStats
    complaint: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ok": self.complaint is None}


@dataclass(frozen=True)
class Layers:
    """The walk through the blocks and, where asked or needed, their ops."""

    rows: tuple[BlockRow, ...]
    ops: tuple[OpRow, ...] = ()
    first: Located | None = None

    @property
    def ok(self) -> bool:
        """Whether every block, and every op looked at, stays within the policy."""
        return self.first is None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ok": self.ok, "rows": [row.to_json() for row in self.rows], "ops": [op.to_json() for op in self.ops]}


@dataclass(frozen=True)
class Logits:
    """How far apart the distributions over the next token are, teacher-forced."""

    positions: int
    mean_kl: float
    max_kl: float
    same_top1: float
    max_logprob_change: float
    perplexity: float
    original_perplexity: float
    kl_percentiles: Mapping[str, float]
    floor: Mapping[str, float]  # the same figures of the original in the engine's dtype

    @property
    def perplexity_ratio(self) -> float:
        """Above 1: the engine is worse."""
        return self.perplexity / self.original_perplexity

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "perplexity_ratio": self.perplexity_ratio}


@dataclass(frozen=True)
class Cost:
    """What the formats lose: the engine beside the original itself, and how its distributions are called for it."""

    word: str
    figures: Logits

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"word": self.word, **self.figures.to_json()}


@dataclass(frozen=True)
class Share:
    """What one narrow module adds to the whole KL, and what it would cost to make it wide.

    `alone` is the KL where it is the only narrow one, `saved` how much less the whole is where it is the only wide one.
    """

    module: str
    format: str
    alone: float
    saved: float
    share: float  # of the whole, by `alone`
    extra_bytes: int

    @property
    def saved_per_mib(self) -> float:
        """KL bought back for each MiB more."""
        return self.saved * 2**20 / self.extra_bytes if self.extra_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "saved_per_mib": self.saved_per_mib}


@dataclass(frozen=True)
class Attribution:
    """Where the quality went: the whole KL, and each module's part of it, the largest first.

    `blocks` is by whole blocks, where there were too many modules to swap each: then `modules` are those of the worst.
    """

    whole: float
    positions: int
    modules: tuple[Share, ...]
    blocks: tuple[Share, ...] = ()
    listed: int = 10

    @property
    def parts(self) -> tuple[Share, ...]:
        """What the whole is cut into: every narrow module is in one of them."""
        return self.blocks or self.modules

    @property
    def sum_alone(self) -> float:
        """Of the parts, each taken alone."""
        return math.fsum(part.alone for part in self.parts)

    @property
    def sum_saved(self) -> float:
        """Of what the parts save, each made wide alone."""
        return math.fsum(part.saved for part in self.parts)

    @property
    def widen(self) -> tuple[Share, ...]:
        """The modules whose widening buys back the most for its bytes."""
        found = [part for part in self.modules if part.saved > 0]
        return tuple(sorted(found, key=lambda part: -part.saved_per_mib)[: self.listed])

    def to_json(self) -> dict[str, Any]:
        """Plain values; `sum_over_whole` is 1 where the parts do not act upon one another."""
        return {
            "whole": self.whole,
            "positions": self.positions,
            "modules": [part.to_json() for part in self.modules],
            "blocks": [part.to_json() for part in self.blocks],
            "sum_alone": self.sum_alone,
            "sum_saved": self.sum_saved,
            "sum_over_whole": self.sum_alone / self.whole if self.whole else None,
            "interaction": self.whole - self.sum_alone,
            "widen": [part.module for part in self.widen],
        }


@dataclass(frozen=True)
class Divergence:
    """The first token where the engine says something else than the original would, given the same text."""

    prompt: str
    position: int
    engine: int
    original: int
    margin: float  # how much the original prefers its own token, in logits
    floor: float  # how far rounding alone moved a logit here
    explained: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Tokens:
    """Greedy text: at each place, does the original (given the engine's text so far) say the same?"""

    total: int
    equal: int
    exact_prompts: int
    prompts: int
    divergences: tuple[Divergence, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every difference lies within the original's own noise."""
        return all(divergence.explained for divergence in self.divergences)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": self.ok,
            **{name: getattr(self, name) for name in ("total", "equal", "exact_prompts", "prompts")},
            "divergences": [divergence.to_json() for divergence in self.divergences],
        }
