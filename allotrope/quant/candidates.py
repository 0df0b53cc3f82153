"""The ways in which one group of layers may be narrowed, of which the block's output chooses.

A candidate is scales for the group's input and, under them, each layer's codes. Each layer's own error proposes few of
them: it is cheap, but it does not know that a query's error counts for less than a value's, nor what the layers behind
make of it. Which one is taken is decided by the whole block's output, on tokens that no search has seen. Rounding
without scales always stands among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from allotrope.quant.formats import Format, Quantised, dequantise
from allotrope.quant.gptq import gptq, prepare
from allotrope.quant.groups import Group
from allotrope.quant.rounding import round_to_nearest
from allotrope.quant.seen import Seen, error, moments
from allotrope.quant.shared import Shared, tidy
from allotrope.quant.smooth import smooth

_EXPONENTS = tuple(step / 10 for step in range(1, 11))
_SMOOTHED = 1.05  # where no channel is loud, smoothing and not are equally good, and which is better is chance
_PROPOSED = 3  # exponents that the block's output chooses among
_SHARE = 0.5  # of what the inputs have lost that a weight is to answer for: all of it fits the sample too closely


@dataclass(frozen=True, eq=False)
class Candidate:
    """`codes` stand for weight · scales; the op before is to give its output divided by `scales`, None for ones."""

    codes: Mapping[str, Quantised]
    scales: torch.Tensor | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    worth: float = 1.0


@dataclass(frozen=True, eq=False)
class Narrowing:
    """A group, the weights of all its layers by path, the formats of those that are narrowed, and its inputs."""

    group: Group
    weights: Mapping[str, torch.Tensor]
    formats: Mapping[str, Format]
    seen: Seen

    @property
    def narrow(self) -> dict[str, torch.Tensor]:
        """The weights that get codes."""
        return {path: self.weights[path] for path in self.formats}

    def aimed(self) -> dict[str, torch.Tensor]:
        """The weights to be rounded: what answers for part of what earlier rounding did to the inputs."""
        whole = self.seen.aimed(torch.cat(list(self.narrow.values())), _SHARE)
        return dict(zip(self.narrow, torch.split(whole, [len(weight) for weight in self.narrow.values()]), strict=True))


def nearest(given: Narrowing) -> Candidate:
    """Rounding to nearest."""
    return Candidate({path: round_to_nearest(given.weights[path], form, path) for path, form in given.formats.items()})


def by_smoothing(given: Narrowing, activations: Format, method: str) -> Iterator[Candidate]:
    """None, and the strength that the layers' own outputs like best; rounded by GPTQ where that is the method."""
    yield nearest(given)
    if method == "gptq":
        yield by_gptq(given)
    if given.group.before is None:
        return
    found = smooth(Shared(given.weights, given.seen.sample()), activations, peaks=given.seen.peaks)
    if found.strength is None:
        return
    scales = tidy(given.group.before.shared(found.scales))
    if method == "gptq":
        made = by_gptq(given, scales)
    else:
        codes = {
            path: round_to_nearest(given.weights[path] * scales, form, path) for path, form in given.formats.items()
        }
        made = Candidate(codes, scales)
    yield replace(made, facts={**made.facts, "strength": found.strength}, worth=_SMOOTHED)


def by_awq(given: Narrowing) -> Iterator[Candidate]:
    """None, clipping alone, and the exponents that the layers' own outputs like best, with clipping."""
    yield nearest(given)
    aimed = given.aimed()
    yield Candidate(_clipped(given, aimed, None), None, {"clip": True})
    before = given.group.before
    if before is None:
        return
    loudness, tried = before.shared(given.seen.loudness), dict[float, torch.Tensor]()
    for exponent in _EXPONENTS:
        tried[exponent] = tidy(torch.where(loudness > 0, loudness**exponent, 0.0))
    errors = {exponent: _error(given, aimed, scales) for exponent, scales in tried.items()}
    for exponent in sorted(errors, key=lambda exponent: errors[exponent])[:_PROPOSED]:
        scales = tried[exponent]
        yield Candidate(_clipped(given, aimed, scales), scales, {"exponent": exponent, "clip": True})


def by_gptq(given: Narrowing, scales: torch.Tensor | None = None) -> Candidate:
    """GPTQ, all layers of the group at once where they have one format."""
    prepared, codes = prepare(given.seen.gram if scales is None else given.seen.scaled(scales)), dict[str, Quantised]()
    aimed = {path: weight if scales is None else weight * scales for path, weight in given.aimed().items()}
    for form in dict.fromkeys(given.formats.values()):
        paths = [path for path in given.formats if given.formats[path] == form]
        stacked = torch.cat([aimed[path] for path in paths])
        made = gptq(stacked, prepared, form, given.group.paths, clip=form.name == "int4")
        start = 0
        for path in paths:
            rows = slice(start, start + len(aimed[path]))
            zeros = None if made.zeros is None else made.zeros[rows].clone()
            codes[path] = Quantised(form, made.codes[rows].clone(), made.scales[rows].clone(), zeros)
            start = rows.stop
    return Candidate(codes, scales, {"damping": prepared.damping} | ({"note": prepared.note} if prepared.note else {}))


def _error(given: Narrowing, aimed: Mapping[str, torch.Tensor], scales: torch.Tensor) -> float:
    """Of rounding to nearest under these scales, summed over the layers."""
    found = 0.0
    for path, form in given.formats.items():
        rounded = dequantise(round_to_nearest(aimed[path] * scales, form, path), torch.float32)
        found += error(given.seen.gram.matrix, rounded / scales - aimed[path])
    return found


def _clipped(given: Narrowing, aimed: Mapping[str, torch.Tensor], scales: torch.Tensor | None) -> dict[str, Quantised]:
    """Codes whose groups are clipped where that brings the layer's whole output nearer."""
    gram = given.seen.gram.matrix if scales is None else given.seen.scaled(scales).matrix
    found = {}
    for path, form in given.formats.items():
        weight = aimed[path] if scales is None else aimed[path] * scales
        parts = moments(gram, form.groups(weight.shape[1])) if form.group is not None else None
        tried = [round_to_nearest(weight, form, path), round_to_nearest(weight, form, path, clip=True, moments=parts)]
        found[path] = min(tried, key=lambda made: error(gram, dequantise(made, torch.float32) - weight))
    return found
