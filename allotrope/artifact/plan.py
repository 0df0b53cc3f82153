"""The plan: what an engine computes, as pure data.

A plan is a list of calls over named slots. A slot is a string with its kind before the colon:

    w:NAME   a packed weight        b:NAME   an activation buffer
    s:NAME   made for each step     c:L.k    layer L's key (or value) cache

Nothing here knows a family, a tactic or a device, so a plan can be run, captured, priced, compared,
bisected and handed to C++.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from allotrope.ops.contract import Scalar
from allotrope.ops.kv_rows import CODED, COMPUTE, row_width
from allotrope.ops.tactic import REFERENCE

TOKENS = "tokens"  # rows of a step: every token that it computes
LOGITS = "logits"  # rows whose logits are wanted
SAMPLES = "samples"  # rows from which a token is drawn


@dataclass(frozen=True)
class Buffer:
    """An activation buffer `[rows, width]`; with `of`, columns `start : start + width` of another."""

    rows: str  # TOKENS, LOGITS or SAMPLES
    width: int
    dtype: str = "compute"  # "compute", fp32 or int64
    of: str | None = None
    start: int = 0


@dataclass(frozen=True)
class Weight:
    """A packed weight: which slots it is made of, with their shapes, and how they lie."""

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    packing: str = "rows"
    dtype: str = "compute"


@dataclass(frozen=True)
class Cache:
    """The KV pool's shape: per layer two arrays `[pages, page_size, row_width]` (see `ops.kv_rows`)."""

    kv_heads: int
    head_dim: int
    dtypes: tuple[str, ...]  # layer by layer, of `kv_rows.FORMS`

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.dtypes)

    @cached_property
    def slots(self) -> Mapping[str, str]:
        """The form of each cache, by the name of its slot."""
        return {f"{layer}.{part}": form for layer, form in enumerate(self.dtypes) for part in "kv"}

    @property
    def narrow(self) -> Mapping[int, str]:
        """The layers that keep less than what is computed, and in which form."""
        return {layer: form for layer, form in enumerate(self.dtypes) if form != COMPUTE}

    @property
    def coded(self) -> Mapping[int, str]:
        """Those of them that keep codes, with a scale per token and head."""
        return {layer: form for layer, form in self.narrow.items() if form in CODED}

    @property
    def words(self) -> str:
        """The form, or how many layers have which."""
        counted = {form: self.dtypes.count(form) for form in self.dtypes}
        if len(counted) == 1:
            return self.dtypes[0]
        told = {form: f"{count} layer" + ("s" if count > 1 else "") for form, count in counted.items()}
        return ", ".join(f"{'wide' if form == COMPUTE else form} in {count}" for form, count in told.items())

    def row_width(self, form: str) -> int:
        """Elements or, of a narrow form, bytes that a token takes in each array."""
        return row_width(form, self.kv_heads, self.head_dim)


@dataclass(frozen=True)
class Call:
    """One op call. `tactics` picks by row count: the first entry whose bound is None or ≥ the rows."""

    path: str  # "blocks.3.attn.q"
    op: str
    ins: Mapping[str, str]
    outs: Mapping[str, str]
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tactics: tuple[tuple[int | None, str], ...] = ((None, REFERENCE),)
    shard: str | None = None  # which axis is split over devices; None: none


@dataclass(frozen=True)
class Plan:
    """The whole step. `dtype` is the compute dtype; `fusions` names the rewrites applied."""

    dtype: str
    vocab: int
    max_len: int
    hidden: str  # the buffer that carries the residual stream from block to block
    buffers: Mapping[str, Buffer]
    weights: Mapping[str, Weight]
    cache: Cache
    calls: tuple[Call, ...]
    fusions: tuple[str, ...] = ()

    def blocks(self) -> Iterator[tuple[str, list[Call]]]:
        """The calls, grouped as `embed`, `blocks.0`, …, `head`: runs of the same leading path."""
        name, group = "", list[Call]()
        for call in self.calls:
            parts = call.path.split(".")
            head = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
            if head != name and group:
                yield name, group
                group = []
            name = head
            group.append(call)
        if group:
            yield name, group

    def stands_alone(self, slot: str) -> bool:
        """Whether a buffer is neither part of another nor has parts."""
        return self.buffers[name(slot)].of is None and all(b.of != name(slot) for b in self.buffers.values())

    def with_tactics(self, tactics: tuple[tuple[int | None, str], ...]) -> Plan:
        """The same plan with every call computed by `tactics`."""
        return replace(self, calls=tuple(replace(call, tactics=tactics) for call in self.calls))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`. Strict: an unknown or missing field is a TypeError."""
        fields = dict(data)
        fields["buffers"] = {name: Buffer(**spec) for name, spec in fields["buffers"].items()}
        fields["weights"] = {
            name: Weight(**{**spec, "parts": tuple((slot, tuple(shape)) for slot, shape in spec["parts"])})
            for name, spec in fields["weights"].items()
        }
        fields["cache"] = Cache(**{**fields["cache"], "dtypes": tuple(fields["cache"]["dtypes"])})
        fields["calls"] = tuple(
            Call(**{**call, "tactics": tuple((bound, name) for bound, name in call["tactics"])})
            for call in fields["calls"]
        )
        fields["fusions"] = tuple(fields["fusions"])
        return Plan(**fields)


def kv_path(layer: int) -> str:
    """The name of what a layer keeps of keys and values."""
    return f"blocks.{layer}.attn.kv"


def kind(slot: str) -> str:
    """`w`, `b`, `s` or `c`."""
    return slot.partition(":")[0]


def name(slot: str) -> str:
    """What stands after the colon."""
    return slot.partition(":")[2]
