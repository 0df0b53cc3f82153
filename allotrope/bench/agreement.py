"""Whether a peer says what the engine says: nobody may be fast and wrong.

Greedy texts part where two tokens are nearly as good as each other, and formats move that place. So what counts is
where a text parts, by how much the engine prefers its own token there (how much it may is a policy, by the weights'
bits), and whether the other's is among the likeliest at all: of a wrong model's thousands of tokens hardly one is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Tokens = Sequence[Sequence[int]]
Score = Callable[[list[list[int]]], list[dict[str, float]]]
"""For each text the engine's likeliest next tokens, as text, with their log-probabilities."""


def agreement(prompts: Tokens, ours: Tokens, theirs: Tokens, score: Score, precision: str) -> dict[str, Any]:
    """How far the texts go together, and what is thought of the places where they part.

    `different`: a margin is beyond what the precision explains, or more than half of the texts part at a token that
    the engine does not hold likely.
    """
    from allotrope.ops.check import PARTING

    parted = []
    for prompt, own, other in zip(prompts, ours, theirs, strict=True):
        place = next((i for i, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), None)
        if place is not None:
            parted.append((place, [*prompt, *own[:place]], own[place], other[place]))
    margins, unlikely = [], 0
    likeliest = score([text for _, text, _, _ in parted]) if parted else []
    for (_, _, own_token, other_token), known in zip(parted, likeliest, strict=True):
        if str(other_token) in known and str(own_token) in known:
            margins.append(max(known[str(own_token)] - known[str(other_token)], 0.0))
        else:
            unlikely += 1
    places = [place for place, *_ in parted]
    return {
        "texts": len(prompts),
        "equal": len(prompts) - len(parted),
        "tokens": len(ours[0]),
        "first_divergence": min(places, default=None),
        "median_divergence": statistics.median(places) if places else None,
        "margin_nats": max(margins, default=None),
        "unlikely": unlikely,
        "different": unlikely * 2 > len(prompts) or max(margins, default=0.0) > PARTING[precision],
    }


def words(found: dict[str, Any]) -> str:
    """The same as a few words."""
    if found["equal"] == found["texts"]:
        return f"all {found['tokens']} tokens equal"
    text = f"{found['equal']} of {found['texts']} texts equal, parting from token {found['first_divergence']} on"
    if found["margin_nats"] is not None:
        text += f", by {found['margin_nats']:.2g} nats at most"
    if found["unlikely"]:
        text += f", {found['unlikely']} at an unlikely token"
    return text + ("; it says something else" if found["different"] else "")
