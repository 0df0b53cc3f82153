"""Which layers stay wide so that the model's KL is within a bound, and what each layer's narrowing adds to it.

A layer's part is measured: the KL divergence at the model's end when it alone is narrow. All these models run side by
side, each as its own hidden states from its layer on, so the checkpoint is streamed once. Then the layers with the
largest parts are widened until what is left, as a sum, is within the bound; and the model so made is measured, as a
whole and on sequences that had no part in the ranking, and more layers are widened until that holds, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from allotrope.artifact.plan import Call
from allotrope.errors import UsageError
from allotrope.quant.calibrate import Tap, rounded_input
from allotrope.quant.formats import dequantise
from allotrope.quant.policy import Policy
from allotrope.quant.streamed import Calibration, Source, weight_slots

_RANKED = 1024  # tokens that rank the layers
_MEASURED = 8192  # at most, that measure the model
MARGIN = 0.8  # of the bound: other text is not the calibration's


def widened(
    source: Source, policy: Policy, calibration: Calibration, bound: float, advance: Callable[[], None] = lambda: None
) -> tuple[Policy, dict[str, Any]]:
    """The policy in which enough layers are wide, and why."""
    ids, length = calibration.ids, calibration.ids.shape[1]
    count = ranking(ids)
    parts = _parts(source, policy, calibration, ids[:count], advance)
    order = sorted(parts, key=lambda path: parts[path], reverse=True)
    measured = ids[count : count + max(2, _MEASURED // length)]
    exact, limit = ends(source, policy, calibration, measured, frozenset()), bound * MARGIN
    rounds: dict[int, dict[str, float]] = {}

    def fits(wide: int) -> bool:
        found = ends(source, policy, calibration, measured, frozenset(order[wide:]))
        each = torch.stack([kl(a, b) for a, b in zip(exact, found, strict=True)])
        high = float(each.mean()) + 2 * (float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0)
        rounds[wide] = {"estimated": _sum(parts, order[wide:]), "kl": float(each.mean()), "high": high}
        return high <= limit

    least, wide = 0, next(wide for wide in range(len(order) + 1) if _sum(parts, order[wide:]) <= limit)
    while not fits(wide):
        least, wide = wide + 1, min(len(order), wide + max(1, (len(order) - wide) // 2))
    while least < wide:  # fewest wide layers, as far as the order goes
        middle = (least + wide) // 2
        least, wide = (least, middle) if fits(middle) else (middle + 1, wide)
    kept = order[:wide]
    reasons = {path: f"--max-kl: narrow, it alone adds {parts[path]:.2g}" for path in kept}
    chosen = replace(policy, formats={**policy.formats, **dict.fromkeys(kept)}, reasons={**policy.reasons, **reasons})
    told = {"bound": bound, **rounds[wide], "wide": kept, "parts": {path: parts[path] for path in order}}
    return chosen, told | {"measured": [{"wide": count, **figures} for count, figures in rounds.items()]}


def ranking(ids: torch.Tensor) -> int:
    """How many of the sequences rank the layers; an error if that leaves none to measure the model on."""
    count = max(1, _RANKED // ids.shape[1])
    if len(ids) <= count:
        problem = f"--max-kl ranks on {count} sequences and measures on others; there are {len(ids)}"
        remedy = f"give --calibration-tokens {(count + 1) * ids.shape[1]} or more, and a text as long"
        raise UsageError(problem, where="calibration", remedy=remedy)
    return count


def _parts(
    source: Source, policy: Policy, calibration: Calibration, ids: torch.Tensor, advance: Callable[[], None]
) -> dict[str, float]:
    """For each narrow layer the KL at the model's end when it alone is narrow. A tied head is so in the embedding, too.

    What stands outside of the blocks runs with codes in the places of all that it shares them with.
    """
    [base], hidden, outside = source.embedded([ids]), f"b:{source.plan.hidden}", source.outside(policy)

    def alone(path: str) -> Tap:
        return rounded_input(policy, frozenset({path}))

    states = {path: source.embedded([ids], dict([codes]), alone(path))[0] for path, codes in outside.items()}
    for name, calls in source.plan.blocks():
        if not name.startswith("blocks."):
            continue
        weights, codes = _weights(source, policy, calibration, name, calls)
        for path, state in states.items():
            states[path] = source.runs.run(calls, weights, {hidden: state}, hidden)
        for path, (slot, narrow) in codes.items():
            states[path] = source.runs.run(calls, {**weights, slot: narrow}, {hidden: base}, hidden, tap=alone(path))
        base = source.runs.run(calls, weights, {hidden: base}, hidden)
        advance()
    calls = _until_logits(list(source.plan.blocks())[-1][1])
    weights, wanted = source.weights(calls), calls[-1].outs["out"]
    exact = source.runs.run(calls, weights, {hidden: base}, wanted)
    parts = {}
    for path, state in states.items():  # one after the other: logits of all at once are much for any machine
        own = dict([outside[path]]) if path in outside else {}
        found = source.runs.run(calls, {**weights, **own}, {hidden: state}, wanted, tap=alone(path))
        parts[path] = float(kl(exact, found))
    return parts


def ends(
    source: Source, policy: Policy, calibration: Calibration, ids: torch.Tensor, narrow: frozenset[str]
) -> list[torch.Tensor]:
    """The logits of each sequence [length, vocab] with only these layers narrow, on the host."""
    hidden, tap = f"b:{source.plan.hidden}", rounded_input(policy, narrow)
    outside = dict(codes for path, codes in source.outside(policy).items() if path in narrow)
    states = source.embedded(list(torch.split(ids, max(1, _RANKED // ids.shape[1]))), outside, tap)
    end = list(source.plan.blocks())[-1][0]
    for name, calls in source.plan.blocks():
        if name == "embed":
            continue
        weights, codes = _weights(source, policy, calibration, name, calls)
        weights |= {slot: values for path, (slot, values) in codes.items() if path in narrow}
        weights |= {slot: values for slot, values in outside.items() if slot in weights}
        todo = _until_logits(calls) if name == end else calls
        wanted = todo[-1].outs["out"] if name == end else hidden
        states = [source.runs.run(todo, weights, {hidden: state}, wanted, tap=tap) for state in states]
        if name == end:
            states = [one for state in states for one in state.cpu().view(-1, ids.shape[1], state.shape[-1])]
    return states


def _weights(
    source: Source, policy: Policy, calibration: Calibration, name: str, calls: Sequence[Call]
) -> tuple[dict[str, torch.Tensor], Mapping[str, tuple[str, torch.Tensor]]]:
    """A part's weights, unrounded, with what was folded; and by path what its codes mean, with their slot."""
    slots, done = weight_slots(source.plan), source.finished(calibration, name)
    weights = {**source.weights(list(calls)), **done.folded}
    for path in done.quantised:
        weights[slots[path]] = done.balanced(path, weights[slots[path]])
    codes = {path: (slots[path], dequantise(one, torch.float32)) for path, one in done.quantised.items()}
    return weights, {path: one for path, one in codes.items() if path in policy.narrow}


def _sum(parts: Mapping[str, float], paths: Sequence[str]) -> float:
    return sum(parts[path] for path in paths)


def _until_logits(calls: Sequence[Call]) -> list[Call]:
    """The head without drawing a token."""
    return [call for call in calls if call.op != "sample"]


def kl(exact: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of KL(exact ‖ found), of logits."""
    right, other = exact.double().log_softmax(-1), found.double().log_softmax(-1)
    return (right.exp() * (right - other)).sum(-1).mean()
