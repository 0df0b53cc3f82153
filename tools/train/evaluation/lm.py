"""A trained folder as transformers computes it in fp32: likelihoods of texts and continuations of prompts.

The network comes through the package's own oracle, so that the first Qwen and DeciCoder are read by the mapping that
`allotrope verify` proves, and no second one exists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allotrope import tokenizers
from allotrope.errors import UsageError
from allotrope.hw.detect import detect
from allotrope.models.model import open_model
from allotrope.verify.original import oracle
from tools.train.data import begin

BUDGET = {"cpu": 4096, "cuda": 65536}  # tokens of one forward pass, padding included: what the logits have room for
ROWS = {"cpu": 64, "cuda": 512}  # continuations that are written at a time


@dataclass(frozen=True)
class Continuation:
    """What a model wrote; without the token that ended it."""

    ids: tuple[int, ...]
    ended: bool  # by one of the ends, not by the limit
    last: int | None = None  # the token that ended it


@dataclass(frozen=True)
class Window:
    """Token ids of one forward pass; those before `first` are context that an earlier window has scored."""

    document: int
    ids: tuple[int, ...]
    first: int


class LanguageModel:
    """A bundled model on a device. `context` is the longest sequence that its transformers class computes rightly."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        if not (folder / "config.json").is_file():
            raise UsageError("there is no trained model", where=str(folder), remedy="run the fit step first")
        self.folder, self.device = folder, detect(device)
        self.source = open_model(folder)
        self.tokenizer = tokenizers.load(folder, self.source.recipe.vocab)
        longest, limit = self.source.recipe.max_len, self.source.family.oracle.max_len(self.source.config)
        self.context = longest if limit is None else min(longest, limit)
        self.network: Any = oracle(self.source, "fp32", self.device, resident=True).model
        self.network.set_attn_implementation("sdpa")

    @property
    def parameters(self) -> int:
        """How many weights there are; a tied head counts once."""
        return self.source.parameters

    @property
    def begin(self) -> int:
        """What stands before a document: the tokenizer's beginning, else the mark that ends the document before."""
        return begin(self.tokenizer)

    def ids(self, text: str) -> list[int]:
        """A text's own ids; a special token's name in it stays text."""
        return self.tokenizer.encode(text, special=False, allow_special=False)

    def surprise(self, documents: Sequence[Sequence[int]], stride: int | None = None) -> list[float]:
        """For each sequence the nats of its tokens after the first.

        A sequence longer than the context is read in windows that overlap by `stride` tokens (half the context), so
        that every token is told at least so many of those before it.
        """
        found = [0.0] * len(documents)
        cut = windows(documents, self.context, stride or self.context // 2)
        for batch in batches(sorted(cut, key=lambda window: -len(window.ids)), BUDGET[self.device.kind]):
            for window, nats in zip(batch, self._score(batch), strict=True):
                found[window.document] += nats
        return found

    @torch.no_grad()
    def _score(self, batch: Sequence[Window]) -> list[float]:
        ids = right_padded([window.ids for window in batch]).to(self.device.torch_name)
        logits = self.network(input_ids=ids, use_cache=False).logits
        nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        rows = nats.view(len(batch), -1).double().cpu()
        return [
            float(row[window.first - 1 : len(window.ids) - 1].sum()) for row, window in zip(rows, batch, strict=True)
        ]

    def likeliest(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """For each place of each sequence the token that the model would put next. None may exceed the context."""
        whole = [Window(i, tuple(ids), 1) for i, ids in enumerate(sequences)]
        found: list[list[int]] = [[] for _ in sequences]
        for batch in batches(sorted(whole, key=lambda window: -len(window.ids)), BUDGET[self.device.kind]):
            ids = right_padded([window.ids for window in batch]).to(self.device.torch_name)
            with torch.no_grad():
                best = self.network(input_ids=ids, use_cache=False).logits.argmax(-1).tolist()
            for window, row in zip(batch, best, strict=True):
                found[window.document] = row[: len(window.ids)]
        return found

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        limit: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        ends: Collection[int] | None = None,
    ) -> list[Continuation]:
        """Continue every prompt by at most `limit` tokens, greedily at temperature 0.

        Prompts of like length go together, padded on the left. `ends` are the tokens that end one (the tokenizer's).
        """
        stops = frozenset(self.tokenizer.eos_ids if ends is None else ends)
        longest = max(map(len, prompts), default=0)
        if longest + limit > self.context:
            raise UsageError(f"a prompt of {longest} tokens and {limit} more exceed the context of {self.context}")
        choose = _chooser(temperature, torch.Generator(self.device.torch_name).manual_seed(seed))
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, Continuation] = {}
        for start in range(0, len(order), ROWS[self.device.kind]):
            some = order[start : start + ROWS[self.device.kind]]
            found |= dict(zip(some, self._write([prompts[i] for i in some], limit, choose, stops), strict=True))
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        limit: int,
        choose: Callable[[torch.Tensor], torch.Tensor],
        stops: frozenset[int],
    ) -> list[Continuation]:
        ids, mask = left_padded(prompts)
        ids, mask = ids.to(self.device.torch_name), mask.to(self.device.torch_name)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache, columns = None, list[torch.Tensor]()
        ending = torch.tensor(sorted(stops), device=ids.device)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
        for _ in range(limit):
            out = self.network(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache, drawn = out.past_key_values, choose(out.logits[:, -1])
            columns.append(drawn)
            done |= torch.isin(drawn, ending)
            if bool(done.all()):
                break
            ids, positions = drawn[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return [ended(row, stops) for row in torch.stack(columns, dim=1).tolist()]


def ended(ids: Sequence[int], stops: frozenset[int]) -> Continuation:
    """The tokens before the first that ends."""
    for place, token in enumerate(ids):
        if token in stops:
            return Continuation(tuple(ids[:place]), True, token)
    return Continuation(tuple(ids), False)


def windows(documents: Sequence[Sequence[int]], context: int, stride: int) -> list[Window]:
    """Every token after a document's first, scored once."""
    found = []
    for number, ids in enumerate(documents):
        scored, start = 1, 0
        while scored < len(ids):
            piece = tuple(ids[start : start + context])
            found.append(Window(number, piece, scored - start))
            scored, start = start + len(piece), start + len(piece) - stride
    return found


def batches(listed: Sequence[Window], budget: int) -> list[list[Window]]:
    """Neighbours together as long as the padded rectangle stays within the budget of tokens."""
    found: list[list[Window]] = []
    for window in listed:
        if found and len(found[-1][0].ids) * (len(found[-1]) + 1) <= budget:
            found[-1].append(window)  # the longest comes first
        else:
            found.append([window])
    return found


def right_padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Padded behind, where nothing under a causal mask looks."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded in front, so that all ends are in one column; and the mask of what is real."""
    longest = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    for place, row in enumerate(rows):
        ids[place, longest - len(row) :] = torch.tensor(row)
        mask[place, longest - len(row) :] = 1
    return ids, mask


def _chooser(temperature: float, source: torch.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    """The likeliest token, or one drawn at a temperature."""
    if temperature == 0:
        return lambda logits: logits.argmax(-1)

    def draw(logits: torch.Tensor) -> torch.Tensor:
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=source)[:, 0]

    return draw
