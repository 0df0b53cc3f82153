"""What the models are asked to reach, as places in their evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A figure and its bound."""

    label: str
    path: tuple[str, ...]
    bound: float
    at_most: bool = False
    index: int | None = None  # of an interval's ends

    def value(self, evaluation: Mapping[str, Any]) -> float:
        """The figure that was measured."""
        found: Any = evaluation
        for key in self.path:
            found = found[key]
        return float(found if self.index is None else found[self.index])

    def met(self, evaluation: Mapping[str, Any]) -> bool:
        """Whether it is good enough."""
        value = self.value(evaluation)
        return value <= self.bound if self.at_most else value >= self.bound

    def told(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """For evaluation.json."""
        wanted = "at most" if self.at_most else "at least"
        return {
            "what": self.label,
            "value": self.value(evaluation),
            "wanted": f"{wanted} {self.bound:g}",
            "met": self.met(evaluation),
        }


def _gain(baseline: str) -> Target:
    """Zero below the whole interval: the model is better than the baseline, and not by chance."""
    path = ("summaries", "baselines", baseline, "gain_interval", "rouge1")
    return Target(f"ROUGE-1 over “{baseline}”, lower end of the interval", path, 0.0, index=0)


TARGETS: dict[str, tuple[Target, ...]] = {
    "pycoder": (
        Target("bits per byte on held-out projects", ("text", "bits_per_byte"), 1.2, at_most=True),
        Target("share below xz -9", ("text", "below_xz"), 0.2),
        Target("bodies with two or more statements that parse", ("bodies", "two_statements_and_parse"), 0.7),
        Target("bodies that repeat no line three times", ("bodies", "no_line_three_times"), 0.9),
        Target(
            "int8 per channel: added perplexity",
            ("rounded", "formats", "int8 per channel", "perplexity_cost"),
            0.003,
            at_most=True,
        ),
        Target(
            "int4 groups of 32: added perplexity",
            ("rounded", "formats", "int4 groups of 32", "perplexity_cost"),
            0.04,
            at_most=True,
        ),
    ),
    "docsum": (_gain("name in words"), _gain("first comment or line")),
    "tinychat": (Target("answers that end with the stop token", ("chat", "stopped"), 0.95),),
    "tinygal-draft": (Target("tokens accepted of 4 drafted", ("drafting", "accepted_per_round"), 1.2),),
}


def of(name: str) -> tuple[Target, ...]:
    """A model's targets; some models have none but to be measured."""
    return TARGETS.get(name, ())
