"""The verdict: one word from what the levels found, and whether that word is good enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allotrope.verify.records import Attribution, Cost, Divergence, Layers, Located, Logits, Preflight, Tokens

IDENTICAL, WITHIN, CLOSE, DEGRADED = "identical", "within rounding", "close", "degraded"
WORDS = (DEGRADED, CLOSE, WITHIN, IDENTICAL)  # from worst to best
LEVELS = ("preflight", "layers", "logits", "tokens")
PROVING = ("preflight", "layers", "tokens")  # without all of these, nothing wrong is no proof of anything right
COSTING = (*PROVING, "logits")  # of a quantised engine, whose word is that of what its formats cost

# What "close" means; these are bounds on what a reader would notice, not on rounding.
_CLOSE_KL, _CLOSE_TOP1, _CLOSE_PERPLEXITY = 0.01, 0.95, 1.02


@dataclass(frozen=True)
class Findings:
    """What each level found; None for a level that was not asked for.

    Of a quantised engine the levels are about its implementation, beside the original with the engine's own weights.
    `formats` say in words what is quantised; `cost` is what that loses.
    """

    dtype: str
    preflight: Preflight | None = None
    layers: Layers | None = None
    logits: Logits | None = None
    tokens: Tokens | None = None
    formats: tuple[str, ...] = ()
    cost: Cost | None = None
    attribution: Attribution | None = None

    @property
    def verdict(self) -> str | None:
        """The word: the implementation's or, where that is right and something is quantised, the cost's."""
        word = self.implementation
        if not self.formats or word == DEGRADED:
            return word
        if word is not None and WORDS.index(word) < WORDS.index(WITHIN):
            return DEGRADED
        return None if word is None or self.cost is None else self.cost.word

    @property
    def implementation(self) -> str | None:
        """Whether the engine computes what its weights say.

        None where nothing is wrong but the levels that could prove the rest were left out.

        The preflight is one of these: an epsilon that is wrong by less than fp32's rounding shows in no figure.
        """
        if self.preflight is not None and not self.preflight.ok:
            return DEGRADED
        wrong = [level for level in (self.layers, self.tokens) if level is not None and not level.ok]
        if wrong:
            return CLOSE if self.logits is not None and _is_close(self.logits) else DEGRADED
        if None in (self.preflight, self.layers, self.tokens):
            return None
        return IDENTICAL if self.dtype == "fp32" else WITHIN

    @property
    def located(self) -> Located | None:
        """The first place that is wrong, in the plan's order; what is exact is believed before what is measured."""
        if self.preflight is not None and self.preflight.located:
            return self.preflight.located[0]
        return None if self.layers is None else self.layers.first

    @property
    def first_divergence(self) -> Divergence | None:
        """The first token that differs and cannot be explained; failing that, the first that differs."""
        found = () if self.tokens is None else self.tokens.divergences
        unexplained = [divergence for divergence in found if not divergence.explained]
        return next(iter(unexplained or found), None)

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts rely on.

        An engine in which nothing is quantised is one implementation of one format: `implementation` is the
        verdict's word, and `cost`, what a narrower format loses, is null.
        """
        levels: Mapping[str, Any] = {name: getattr(self, name) for name in LEVELS}
        located, divergence = self.located, self.first_divergence
        return {
            "verdict": self.verdict,
            "implementation": self.implementation,
            "cost": None if self.cost is None else self.cost.to_json(),
            "formats": list(self.formats),
            "levels": {name: None if level is None else level.to_json() for name, level in levels.items()},
            "first_divergence": None if divergence is None else divergence.to_json(),
            "located": None if located is None else located.to_json(),
            "attribution": None if self.attribution is None else self.attribution.to_json(),
        }


def default_requirement(dtype: str, *, quantised: bool = False) -> str:
    """The least word that is well for an engine of this dtype."""
    if quantised:
        return CLOSE
    return IDENTICAL if dtype == "fp32" else WITHIN


def enough(word: str | None, required: str) -> bool:
    """Whether `word` is at least `required`. Nothing found wrong, but not all asked, is enough."""
    return word is None or WORDS.index(word) >= WORDS.index(required)


def cost_word(logits: Logits, within: bool) -> str:
    """What a quantised engine's distance from the original is called; `within`: no more than the dtype explains."""
    if within:
        return WITHIN
    return CLOSE if _is_close(logits) else DEGRADED


def _is_close(logits: Logits) -> bool:
    return (
        logits.mean_kl <= _CLOSE_KL and logits.same_top1 >= _CLOSE_TOP1 and logits.perplexity_ratio <= _CLOSE_PERPLEXITY
    )
