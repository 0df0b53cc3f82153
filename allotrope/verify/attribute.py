"""Where did the quality go? Modules are swapped one at a time, and the KL to the wide model is measured each time.

A module is a linear layer with its codes (and with the rounding of its inputs), or what a layer keeps of keys and
values. Two swaps tell two things of it:

    alone    everything wide but this module: what it costs by itself
    saved    everything narrow but this module: what making it wide would buy back

If modules did not act upon one another, what they cost alone would add up to the whole. What is folded (norms, biases)
stays as the engine has it, and a wide weight is the checkpoint's times the scales that belong to that: so the wide
model is the original, and a fold costs nothing by itself. All is computed by the original's class in fp32, to which
the engine has been compared before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from allotrope.artifact.plan import Plan, kv_path
from allotrope.hw.device import Device
from allotrope.models.model import Model
from allotrope.ops.kv_rows import COMPUTE
from allotrope.verify.distributions import mean_kl
from allotrope.verify.effective import PARTS, Effective, Stored, shortened, slots_of
from allotrope.verify.folds import Folds
from allotrope.verify.oracle import DTYPES, LOGITS, Oracle
from allotrope.verify.original import adapted, modules, oracle, targets
from allotrope.verify.places import block_of
from allotrope.verify.quantisers import Active
from allotrope.verify.records import Attribution, Share

_PRECISION = "fp32"
MOST = 64  # modules that are each swapped; of more, blocks come first, and then the modules of the worst

Advance = Callable[[], None]
Installed = Callable[[Oracle, Active], Oracle]


@dataclass(frozen=True)
class Module:
    """Something narrow, and how many bytes more it would take wide."""

    path: str
    format: str
    extra_bytes: int


def narrow_modules(stored: Stored) -> list[Module]:
    """All that is narrow, block by block. Keys and values count as those of one sequence of full length."""
    plan = stored.plan
    found = [_layer(stored, path) for path in stored.narrow]
    found += [_short(stored, slot, tag) for slot, tag in shortened(plan).items()]
    found += [_kept(plan, layer, form) for layer, form in plan.cache.narrow.items()]
    order = list(dict.fromkeys(block_of(call.path) for call in plan.calls))
    return sorted(found, key=lambda module: order.index(block_of(module.path)))


def _layer(stored: Stored, path: str) -> Module:
    layer = stored.narrow[path]
    parts = [f"{path}.{part}" for part in PARTS]
    taken = sum(int(stored.array(slot)[0].nbytes) for slot in parts if slot in stored)
    wide = stored.decoded(path, torch.float32).numel() * DTYPES[stored.plan.dtype].itemsize
    inputs = "" if layer.activations == "none" else f" × {layer.activations}"
    return Module(path, f"{layer.format}{inputs}", wide - taken)


def _short(stored: Stored, slot: str, tag: str) -> Module:
    here = stored.tensor(slot)
    return Module(
        slot.removesuffix(".weight"), tag, here.numel() * (DTYPES[stored.plan.dtype].itemsize - here.itemsize)
    )


def _kept(plan: Plan, layer: int, form: str) -> Module:
    cache = plan.cache
    wide = cache.row_width(COMPUTE) * DTYPES[plan.dtype].itemsize
    return Module(kv_path(layer), f"kv {form}", 2 * plan.max_len * (wide - cache.row_width(form)))


class _Mixture(Effective):
    """The engine's weights with some modules wide, poured into one oracle."""

    def __init__(self, stored: Stored, model: Model, folds: Folds, installed: Installed, device: Device) -> None:
        super().__init__(stored, model)
        self._folds = folds
        self.wide = frozenset[str]()
        self._read = partial(self.read, _PRECISION)
        self._groups = {slot: names for names in modules(model) for name in names for slot in slots_of(model)[name]}
        # Nothing is kept from one reading to the next: what is read changes with the mixture.
        weights = {name: partial(self._load, names, name) for names in modules(model) for name in targets(model, names)}
        self._oracle: Oracle = oracle(model, _PRECISION, device, weights=weights)
        installed(self._oracle, lambda path: path not in self.wide)

    def value(self, slot: str, dtype: torch.dtype) -> torch.Tensor:
        """A slot as the mixture has it."""
        path = self._stored.path(slot)
        if path in self.wide and path != slot and slot in self._model.sources:
            return self._folds.wide(path, dtype)
        return super().value(slot, dtype)

    def _load(self, names: tuple[str, ...], target: str) -> torch.Tensor:
        return adapted(self._model, names, self._read)[target]

    def widen(self, wide: Iterable[str]) -> None:
        """Make these modules wide and all others narrow."""
        before, self.wide = self.wide, frozenset(wide)
        changed = {self._stored.slot(path) for path in before ^ self.wide}
        for names in dict.fromkeys(self._groups[slot] for slot in changed if slot in self._groups):
            self._oracle.set(adapted(self._model, names, self._read))

    def logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Of all tokens."""
        return self._oracle.walk(sequences, {})[LOGITS]


def steps(stored: Stored) -> int:
    """How many walks an attribution takes, at most."""
    count = len(narrow_modules(stored))
    blocks = len({block_of(module.path) for module in narrow_modules(stored)})
    return 2 + 2 * (count if count <= MOST else blocks + MOST)


def attribute(
    stored: Stored,
    model: Model,
    folds: Folds,
    installed: Installed,
    device: Device,
    sequences: Sequence[Sequence[int]],
    advance: Advance = lambda: None,
) -> Attribution:
    """Each module's share of the KL between the wide model and the narrow one, on these tokens.

    `installed` gives the original what of the engine is no weight, as long as a module is active.
    """
    found = narrow_modules(stored)
    everything = frozenset(module.path for module in found)
    mixture = _Mixture(stored, model, folds, installed, device)

    def logits(wide: frozenset[str]) -> torch.Tensor:
        mixture.widen(wide)
        advance()
        return mixture.logits(sequences)

    truth = logits(everything)
    whole = mean_kl(logits(frozenset()), truth)

    def share(name: str, parts: Sequence[Module]) -> Share:
        paths = frozenset(part.path for part in parts)
        saved = whole - mean_kl(logits(paths), truth)
        alone = mean_kl(logits(everything - paths), truth)
        formats = ", ".join(dict.fromkeys(part.format for part in parts))
        extra = sum(part.extra_bytes for part in parts)
        return Share(name, formats, alone, saved, alone / whole if whole else 0.0, extra)

    groups: dict[str, list[Module]] = {}
    for module in found:
        groups.setdefault(block_of(module.path), []).append(module)
    blocks = list[Share]()
    if len(found) > MOST:
        blocks = _largest_first(share(block, parts) for block, parts in groups.items())
        found = _of_the_worst(blocks, groups)
    shares = _largest_first(share(module.path, [module]) for module in found)
    return Attribution(whole, len(truth), tuple(shares), tuple(blocks))


def _largest_first(shares: Iterable[Share]) -> list[Share]:
    return sorted(shares, key=lambda share: -share.alone)


def _of_the_worst(blocks: Sequence[Share], groups: Mapping[str, Sequence[Module]]) -> list[Module]:
    """The modules of the worst blocks, whole blocks and at least one, no more than MOST."""
    found = list[Module]()
    for block in blocks:
        if found and len(found) + len(groups[block.module]) > MOST:
            break
        found += groups[block.module]
    return found
