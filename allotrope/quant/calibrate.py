"""Quantising block by block on calibration tokens, with the weights of one block at a time.

    tokens ─▶ embed ─▶ block 0 ─▶ block 1 ─▶ …      as they are in the wide model
                  └──▶ block 0′ ─▶ block 1′ ─▶ …    as they have become: what a block reads is what it will read

Within a block the groups of layers are narrowed in the order in which they run, each on inputs that the groups before
it have already changed. How a group is narrowed is decided by the block's output on held-out tokens (`candidates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan
from allotrope.errors import NumericalError
from allotrope.quant.candidates import Candidate, Narrowing, by_awq, by_gptq, by_smoothing, nearest
from allotrope.quant.formats import Format, Quantised, dequantise
from allotrope.quant.groups import Before, Group, groups
from allotrope.quant.policy import Policy
from allotrope.quant.seen import Seen
from allotrope.quant.smooth import quantise_rows

Tensors = Mapping[str, torch.Tensor]
Tap = Callable[[Call, Tensors], torch.Tensor | None]
HELD_OUT = 8  # one in so many batches chooses between candidates, and is not searched on


class Runs(Protocol):
    """What runs calls of a plan on a batch of whole sequences: `build.blocks.Blocks`."""

    def run(
        self,
        calls: Sequence[Call],
        weights: Tensors,
        given: Tensors,
        wanted: str,
        *,
        ids: torch.Tensor | None = None,
        tap: Tap | None = None,
    ) -> torch.Tensor:
        """From the slots `given` (or token ids) to the slot `wanted`; a tap may give a linear another `x`."""
        ...


@dataclass(frozen=True, eq=False)
class Made:
    """A narrowed block: for each layer the weight that its codes stand for, and what else has changed.

    `columns` and `rows` are what a layer's columns were multiplied and its rows divided by, where they were.
    """

    codes: Mapping[str, tuple[torch.Tensor, Quantised]]
    folded: Tensors
    columns: Tensors
    rows: Tensors
    facts: tuple[Mapping[str, Any], ...] = ()


class Streams:
    """The hidden states of all batches between two blocks, of the wide model and of the narrow one.

    The two begin alike, unless a narrow head is the embedding, too: then `narrow` is how the other begins.
    """

    def __init__(
        self, plan: Plan, runs: Runs, policy: Policy, wide: list[torch.Tensor], narrow: list[torch.Tensor] | None = None
    ) -> None:
        self.wide, self.narrow = wide, list(wide if narrow is None else narrow)
        self._runs, self.tap = runs, rounded_input(policy)
        self.hidden = f"b:{plan.hidden}"

    @property
    def held(self) -> list[int]:
        """The batches that choose."""
        return list(range(0, len(self.wide), HELD_OUT))

    @property
    def searched(self) -> list[int]:
        """The batches that are searched on: all others, if there are any."""
        return [i for i in range(len(self.wide)) if i % HELD_OUT] or self.held

    def look(self, calls: Sequence[Call], wide: Tensors, narrow: Tensors, group: Group) -> Seen:
        """What the group reads, in the batches that are searched on."""
        seen, ahead = None, calls[: group.start]
        for i in self.searched:
            one = self._runs.run(ahead, wide, {self.hidden: self.wide[i]}, group.slot)
            two = self._runs.run(ahead, narrow, {self.hidden: self.narrow[i]}, group.slot, tap=self.tap)
            seen = seen or Seen(one.shape[1], group.paths, one.device)
            seen.add(one, two)
        if seen is None:
            raise NumericalError("no tokens were seen", where=group.paths, remedy="give a longer calibration text")
        return seen

    def outputs(self, calls: Sequence[Call], weights: Tensors, *, narrow: bool) -> Iterator[torch.Tensor]:
        """The block's results in the batches that choose."""
        given, tap = (self.narrow, self.tap) if narrow else (self.wide, None)
        for i in self.held:
            yield self._runs.run(calls, weights, {self.hidden: given[i]}, self.hidden, tap=tap)

    def advance(self, calls: Sequence[Call], wide: Tensors, narrow: Tensors) -> None:
        """Behind the block."""
        for i, (one, two) in enumerate(zip(self.wide, self.narrow, strict=True)):
            self.wide[i] = self._runs.run(calls, wide, {self.hidden: one}, self.hidden)
            self.narrow[i] = self._runs.run(calls, narrow, {self.hidden: two}, self.hidden, tap=self.tap)


def rounded_input(policy: Policy, among: frozenset[str] | None = None) -> Tap:
    """A tap that rounds what a layer (`among` these) reads, where the policy rounds activations."""

    def tap(call: Call, ins: Tensors) -> torch.Tensor | None:
        kind = policy.product(call.path) if among is None or call.path in among else None
        if kind is None:
            return None
        rows = quantise_rows(ins["x"], Format("fp8" if kind == "fp8" else "int8"))
        return rows.codes.float() * rows.scales

    return tap


def unseen(call: Call, ins: Tensors) -> None:
    """The tap that changes nothing."""


class Narrower:
    """Narrows one block after the other."""

    def __init__(self, plan: Plan, policy: Policy, streams: Streams, *, smooth: bool) -> None:
        self._plan, self._policy, self._streams, self._smooth = plan, policy, streams, smooth

    def block(self, calls: Sequence[Call], wide: Tensors) -> Made:
        """The block's layers in their formats."""
        now, codes = dict(wide), dict[str, tuple[torch.Tensor, Quantised]]()
        exact = list(self._streams.outputs(calls, wide, narrow=False))
        facts, changed = [], set[str]()
        columns, rows = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        for group in groups(self._plan, calls):
            formats = {call.path: form for call in group.calls if (form := self._policy.narrow.get(call.path))}
            if not formats:
                continue
            seen = self._streams.look(calls, wide, now, group)
            weights = {call.path: now[plans.name(call.ins["weight"])] for call in group.calls}
            given = Narrowing(group, weights, formats, seen)
            tried: list[
                tuple[float, Candidate, dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, Quantised]]]
            ] = []
            for candidate in self._candidates(given):
                trial, made = dict(now), dict(codes)
                _take(given, candidate, trial, made)
                found = self._streams.outputs(calls, trial, narrow=True)
                loss = sum(float((a - b).double().square().sum()) for a, b in zip(found, exact, strict=True))
                tried.append((loss, candidate, trial, made))
            loss, best, now, codes = min(tried, key=lambda one: one[0] * one[1].worth)
            if best.scales is not None and group.before is not None:
                columns |= dict.fromkeys(formats, best.scales)
                if group.before.linear:
                    rows[group.before.path] = group.before.rows(best.scales)
                changed |= set(group.before.slots) | {
                    plans.name(call.ins["weight"]) for call in group.calls if call.path not in formats
                }
            facts.append(_facts(group, best, loss, tried[0][0], exact))
        slots = {plans.name(call.ins["weight"]) for call in calls if call.path in codes}
        return Made(codes, {slot: now[slot] for slot in sorted(changed - slots)}, columns, rows, tuple(facts))

    def _candidates(self, given: Narrowing) -> Iterator[Candidate]:
        """The first is what all others are measured against."""
        kinds = {kind for path in given.formats if (kind := self._policy.product(path))}
        if kinds and self._smooth:
            yield from by_smoothing(given, Format("fp8" if "fp8" in kinds else "int8"), self._policy.method)
        elif self._policy.method == "awq":
            yield from by_awq(given)
        else:
            yield nearest(given)
            if self._policy.method == "gptq":
                yield by_gptq(given)


def effective(made: Made, wide: Tensors, weight_of: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The block's weights as codes mean them; `weight_of` names each layer's slot."""
    narrow = {weight_of[path]: dequantise(codes, torch.float32) for path, (_, codes) in made.codes.items()}
    return {**wide, **made.folded, **narrow}


def _take(
    given: Narrowing,
    candidate: Candidate,
    weights: dict[str, torch.Tensor],
    codes: dict[str, tuple[torch.Tensor, Quantised]],
) -> None:
    """Put the candidate into the block: its codes, and its scales into the op before."""
    slots = {call.path: plans.name(call.ins["weight"]) for call in given.group.calls}
    for path, weight in given.weights.items():
        scaled = weight if candidate.scales is None else weight * candidate.scales
        if path in candidate.codes:
            codes[path] = (scaled, candidate.codes[path])
            scaled = dequantise(candidate.codes[path], torch.float32)
        weights[slots[path]] = scaled
    if candidate.scales is not None and given.group.before is not None:
        _fold(given.group.before, candidate.scales, weights, codes)


def _fold(
    before: Before,
    scales: torch.Tensor,
    weights: dict[str, torch.Tensor],
    codes: dict[str, tuple[torch.Tensor, Quantised]],
) -> None:
    """Divide what the op before gives. Rows of codes are divided through their scales: the codes stay."""
    rows = before.rows(scales)
    for slot in before.slots:
        weights[slot] = weights[slot] / (rows[:, None] if weights[slot].dim() == 2 else rows)
    if before.path in codes:
        weight, old = codes[before.path]
        kind = old.format.scale_dtype
        divided = (old.scales.double() / rows.double()[:, None]).clamp(min=torch.finfo(kind).tiny).to(kind)
        new = Quantised(old.format, old.codes, divided, old.zeros)
        codes[before.path] = (weight / rows[:, None], new)
        weights[before.slots[0]] = dequantise(new, torch.float32)


def _facts(group: Group, best: Candidate, loss: float, plain: float, exact: list[torch.Tensor]) -> dict[str, Any]:
    """What was chosen, and by how much: the block's error on held-out tokens, relative in RMS."""
    size = sum(float(one.double().square().sum()) for one in exact) or 1.0
    found: dict[str, Any] = {"group": group.paths, **best.facts}
    if group.why_not is not None:
        found["no_scales"] = group.why_not
    return found | {"error": (loss / size) ** 0.5, "plain": (plain / size) ** 0.5}
