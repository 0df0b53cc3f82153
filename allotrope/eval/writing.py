"""Greedy texts of both sides, from the same token ids, many at a time.

The engine writes as it serves: requests share its steps. The original's prompts lie side by side, padded on the left,
with a mask of what is real and positions that count from each prompt's own beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from allotrope.errors import NumericalError
from allotrope.runtime.loop import HOLD_S
from allotrope.runtime.opening import Opened
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.tokenizers import Tokenizer
from allotrope.verify.oracle import Oracle

Ids = Sequence[int]
Done = Callable[[int], object]
Enough = Callable[[Ids], bool]


@dataclass(frozen=True)
class Written:
    """One side's texts, in the prompts' order, and how long they took. A token that ended a text is part of it."""

    ids: tuple[tuple[int, ...], ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """All that was written."""
        return sum(map(len, self.ids))


def by_engine(
    opened: Opened, prompts: Sequence[Ids], limits: Sequence[int], done: Done = lambda _: None, stop: Sequence[str] = ()
) -> Written:
    """At most so many greedy tokens after each prompt; `done` hears how many texts have ended."""
    loop, began = opened.loop, time.perf_counter()
    params = [SamplingParams(max_tokens=limit, temperature=0.0, stop=tuple(stop)) for limit in limits]
    generations = [loop.prepare(None, ids, own) for ids, own in zip(prompts, params, strict=True)]
    try:
        for generation in generations:
            loop.submit(generation, HOLD_S)
        left = set(generations)
        while left:
            loop.step()
            ended = {generation for generation in left if generation.ended}
            left -= ended
            if ended:
                done(len(ended))
    finally:
        for generation in generations:
            loop.cancel(generation)
        loop.drain()
    outputs = [generation.output() for generation in generations]
    failed = next((output.error for output in outputs if output.error), None)
    if failed:
        raise NumericalError(failed, remedy="check the engine with: allotrope verify")
    return Written(tuple(output.outputs[0].token_ids for output in outputs), time.perf_counter() - began)


def by_original(
    original: Oracle,
    prompts: Sequence[Ids],
    limits: Sequence[int],
    stops: frozenset[int],
    *,
    batch: int,
    done: Done = lambda _: None,
    enough: Enough = lambda _: False,
) -> Written:
    """The same from the original, `batch` prompts of like length at a time; `enough(ids)` ends a text, too.

    Where the rotary base follows the longest sequence, each prompt goes by itself.
    """
    began = time.perf_counter()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    step = 1 if original.by_longest else batch
    found: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(order), step):
        some = order[start : start + step]
        rows, most = [prompts[i] for i in some], [limits[i] for i in some]
        found |= zip(some, _together(original, rows, most, stops, enough), strict=True)
        done(len(some))
    return Written(tuple(found[i] for i in range(len(prompts))), time.perf_counter() - began)


@torch.no_grad()
def _together(
    original: Oracle, prompts: Sequence[Ids], limits: Sequence[int], stops: frozenset[int], enough: Enough
) -> list[tuple[int, ...]]:
    original.renew()
    ids, mask = (part.to(original.device) for part in left_padded(prompts))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    texts: list[list[int]] = [[] for _ in prompts]
    live, cache = set(range(len(prompts))), None
    for _ in range(max(limits)):
        out = original.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache, drawn = out.past_key_values, out.logits[:, -1].argmax(-1)
        for row, token in enumerate(drawn.tolist()):
            if row in live:
                texts[row].append(token)
                if token in stops or len(texts[row]) == limits[row] or enough(texts[row]):
                    live.discard(row)
        if not live:
            break
        ids, positions = drawn[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return [tuple(text) for text in texts]


def spelled(tokenizer: Tokenizer, prompt: Ids, text: Ids) -> str:
    """A text as it follows its prompt: with the space before its first word, where it has one."""
    stream = tokenizer.stream(prompt)
    return "".join(map(stream.push, text)) + stream.flush()


def left_padded(rows: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded in front, so that all ends are in one column; and the mask of what is real."""
    longest = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    for place, row in enumerate(rows):
        ids[place, longest - len(row) :] = torch.tensor(row)
        mask[place, longest - len(row) :] = 1
    return ids, mask
