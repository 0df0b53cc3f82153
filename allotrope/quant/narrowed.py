"""What quantising a model gives: the plan that reads codes, their bytes, and what was lost, weight by weight.

Codes are laid down in a folder as soon as they are made, so that a model is never held in memory, and no weight is
rounded twice: once for its error, and once to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotrope.artifact.plan import Plan
from allotrope.errors import NumericalError
from allotrope.ops.packing import RawArray
from allotrope.quant.formats import Format, Quantised, Store, pack
from allotrope.quant.order import first_of_each, reorder
from allotrope.quant.policy import Policy
from allotrope.quant.report import WeightError, measure, measure_store, total
from allotrope.quant.rewrite import rewrite

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Narrowed:
    """`arrays` has every slot whose bytes are not simply the checkpoint's: codes, scales and zeros as they are stored,
    and wide weights into which a scale was folded, in fp32."""

    plan: Plan
    arrays: Mapping[str, Callable[[], RawArray]] = field(default_factory=dict)
    errors: tuple[WeightError, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As kept in the engine; nothing where nothing was quantised."""
        if not self.errors:
            return {}
        errors = [error.to_json() for error in self.errors]
        return {**self.facts, "total": total(self.errors).to_json(), "weights": errors}


class Gathered:
    """Narrow weights as they are made, one after the other. `folder` must live until the arrays have been read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, Callable[[], RawArray]] = {}
        self._errors: list[WeightError] = []
        self._formats: dict[str, Format] = {}
        self._orders: dict[str, RawArray] = {}

    def add(self, path: str, weight: torch.Tensor, quantised: Quantised, order: RawArray | None = None) -> None:
        """What stands for the weight [out, in] of the linear layer at `path`, and how far it is from it.

        `order`: the column of the weight, and of its input, that each column of the codes is.
        """
        if order is not None:
            self._orders[path] = order
            weight = weight[:, torch.from_numpy(order).long().to(weight.device)]
        self._lay_down(path, quantised)
        self._errors.append(measure(path, weight, quantised))

    def add_store(self, path: str, weight: torch.Tensor, store: Store) -> None:
        """A weight that the Packer rounds to 16 bits: only its error is taken down."""
        stored = weight.to(_DTYPES[store.name])
        if not bool(stored.isfinite().all()):
            found = "holds NaN or infinity" if not bool(weight.isfinite().all()) else f"does not fit {store}"
            raise NumericalError(f"the weight {found}", where=path, remedy=f"add --keep '{path}=wide'")
        self._errors.append(measure_store(path, weight, stored, store))

    def keep(self, error: WeightError, quantised: Quantised) -> None:
        """As `add`, with the error measured before."""
        self._lay_down(error.path, quantised)
        self._errors.append(error)

    def folded(self, slot: str) -> torch.Tensor | None:
        """What `fold` was given for the slot."""
        return torch.from_numpy(self._arrays[slot]().copy()) if slot in self._arrays else None

    def fold(self, slot: str, values: torch.Tensor) -> None:
        """A wide weight that is no longer the checkpoint's."""
        self._put(slot, values.float())

    def finish(self, plan: Plan, policy: Policy, facts: Mapping[str, Any]) -> Narrowed:
        """All of it, over the plan that reads it."""
        kept = {path: why for path, why in policy.reasons.items() if path in policy.formats}
        found = {"method": policy.method, "policy": policy.to_json(), "exceptions": kept, **facts}
        firsts = first_of_each(plan, self._orders)
        for path in set(firsts.values()):
            self._put(f"{path}.order", torch.from_numpy(self._orders[path]))
        made = replace(policy, formats={**policy.formats, **self._formats})
        return Narrowed(reorder(rewrite(plan, made), firsts), self._arrays, tuple(self._errors), found)

    def _lay_down(self, path: str, quantised: Quantised) -> None:
        self._formats[path] = quantised.format
        self._put(f"{path}.codes", pack(quantised.codes, quantised.format))
        self._put(f"{path}.scales", quantised.scales)
        if quantised.zeros is not None:
            self._put(f"{path}.zeros", quantised.zeros)

    def _put(self, slot: str, tensor: torch.Tensor) -> None:
        path = self._folder / f"{slot}.npy"
        np.save(path, tensor.cpu().contiguous().numpy())
        self._arrays[slot] = lambda: np.load(path, mmap_mode="r")
