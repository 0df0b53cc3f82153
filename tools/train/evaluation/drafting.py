"""tinygal-draft's task: how many of 4 greedy tokens that it drafts are tinygal's own.

Greedy speculation writes exactly the large model's greedy text. A draft counts up to its first wrong token, and as
long as it is right its context is that very text; so one pass of the small model over the finished text gives all
its drafts: at place i it drafts right for as many places as its likeliest token is the text's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tools.train.evaluation import intervals
from tools.train.evaluation.lm import LanguageModel

DRAFTED, PROMPT_TOKENS, NEW_TOKENS, PROMPTS, SEED = 4, 64, 48, 512, 0
REPEATED = 8  # a continuation in which so many tokens in a row come twice is left out


def prompts(model: LanguageModel, documents: Sequence[str]) -> list[list[int]]:
    """Stretches of held-out documents, from anywhere in them; longer documents give more."""
    source, found = random.Random(SEED), list[list[int]]()
    texts = [ids for text in documents if len(ids := model.ids(text)) >= PROMPT_TOKENS]
    lengths = [len(ids) for ids in texts]
    while texts and len(found) < PROMPTS:
        [ids] = source.choices(texts, lengths)
        start = source.randrange(len(ids) - PROMPT_TOKENS + 1)
        found.append(ids[start : start + PROMPT_TOKENS])
    return found


def repeats(ids: Sequence[int], length: int = REPEATED) -> bool:
    """Whether some `length` tokens in a row come twice."""
    seen = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    return len(set(seen)) < len(seen)


def rounds(right: Sequence[bool], drafted: int = DRAFTED) -> list[int]:
    """Tokens accepted in each round of speculation; every round adds one token of the large model's besides.

    A round near the end, where fewer than `drafted` tokens were left to draft, is not counted.
    """
    found, place = [], 0
    while place + drafted <= len(right):
        accepted = next((n for n in range(drafted) if not right[place + n]), drafted)
        found.append(accepted)
        place += accepted + 1
    return found


def measure(large: LanguageModel, small: LanguageModel, documents: Sequence[str]) -> dict[str, Any]:
    """Mean tokens accepted per round, over the prompts whose continuations do not repeat themselves."""
    asked = prompts(large, documents)
    written = large.write(asked, NEW_TOKENS)
    kept = [(ids, text.ids) for ids, text in zip(asked, written, strict=True) if not repeats(text.ids)]
    likeliest = small.likeliest([[*ids, *text] for ids, text in kept])
    accepted, counted = list[int](), list[int]()
    for (ids, text), best in zip(kept, likeliest, strict=True):
        right = [best[len(ids) - 1 + place] == token for place, token in enumerate(text)]
        told = rounds(right)
        accepted.append(sum(told))
        counted.append(len(told))
    some = any(counted)
    return {
        "prompts": len(asked),
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "drafted": DRAFTED,
        "left_out_for_repeating": len(asked) - len(kept),
        "rounds": sum(counted),
        "accepted_per_round": sum(accepted) / sum(counted) if some else 0.0,
        "accepted_per_round_interval": intervals.ratio(accepted, counted) if some else (0.0, 0.0),
    }
