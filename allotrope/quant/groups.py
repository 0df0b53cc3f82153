"""The linear layers of a block that read one input, and where a scale of that input's channels can be folded.

    norm → q, k, v       norm → gate, up       v → o, alike within a group of query heads       up → down

A scale folded into the op before costs nothing when the engine runs. Elsewhere (after gelu, say, which does not
commute with a scale) there is nowhere to put it, and the group says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan


@dataclass(frozen=True)
class Before:
    """What gives a group its input: a norm, or a linear layer whose rows become its channels.

    `slots` are what is divided by the scales. `heads`, `kv_heads` and `head_dim` are set where the input is
    attention's: then a key-value head's channels serve several query heads, which share their scales.
    """

    path: str
    slots: tuple[str, ...]
    linear: bool
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 0

    def shared(self, values: torch.Tensor) -> torch.Tensor:
        """Per channel of the input, values that are alike wherever scales must be: the largest among them."""
        if not self.head_dim:
            return values
        grouped = values.view(self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        return grouped.amax(1, keepdim=True).expand_as(grouped).reshape(-1)

    def rows(self, scales: torch.Tensor) -> torch.Tensor:
        """The scales of the channels, for what is to be divided by them."""
        if not self.head_dim:
            return scales
        return scales.view(self.kv_heads, -1, self.head_dim)[:, 0].reshape(-1)


@dataclass(frozen=True)
class Group:
    """Linear calls that read one input. `start` counts the block's calls before the first of them."""

    calls: tuple[Call, ...]
    start: int
    before: Before | None
    why_not: str | None  # why no scale can be folded

    @property
    def slot(self) -> str:
        """Of the input."""
        return self.calls[0].ins["x"]

    @property
    def paths(self) -> str:
        """For people: `blocks.0.attn.q, k, v`."""
        head, _, tail = self.calls[0].path.rpartition(".")
        return f"{head}." + ", ".join([tail, *(call.path.rpartition(".")[2] for call in self.calls[1:])])


def groups(plan: Plan, calls: Sequence[Call]) -> list[Group]:
    """The groups of one block, in the order in which they run."""
    found: list[Group] = []
    taken: set[str] = set()
    for start, call in enumerate(calls):
        if call.op != "linear" or call.path in taken:
            continue
        slot = call.ins["x"]
        last = next((i for i, other in enumerate(calls) if i > start and slot in other.outs.values()), len(calls))
        readers = [other for other in calls[start:last] if slot in other.ins.values()]
        mine = tuple(other for other in readers if other.op == "linear" and other.ins["x"] == slot)
        taken |= {other.path for other in mine}
        before, why_not = _before(calls, start, slot)
        source = next((i for i in range(start - 1, -1, -1) if slot in calls[i].outs.values()), -1)
        others = [other.path for other in calls[source + 1 : last] if slot in other.ins.values() and other not in mine]
        if last == len(calls) and slot == f"b:{plan.hidden}":
            others.append("the next block")
        if before is not None and others:
            before, why_not = None, f"{others[0]} reads the same input"
        found.append(Group(mine, start, before, why_not))
    return found


def _before(calls: Sequence[Call], start: int, slot: str) -> tuple[Before | None, str | None]:
    source = _source(calls, start, slot)
    if source is None:
        return None, "its input comes from another block"
    if source.op in ("rmsnorm", "layernorm"):
        slots = tuple(plans.name(source.ins[part]) for part in ("weight", "bias") if part in source.ins)
        if "weight" not in source.ins:
            return None, f"{source.path} has no weight"
        return Before(source.path, slots, False), None
    if source.op == "attention":
        write = _source(calls, calls.index(source), source.ins["v_cache"])
        v = None if write is None else _source(calls, calls.index(write), write.ins["v"])
        sizes = (int(source.params[name]) for name in ("heads", "kv_heads", "head_dim"))
        return (_linear(v, *sizes), None) if v is not None and v.op == "linear" else (None, "its values are no layer's")
    factor = {"gated": "up"}.get(source.op, "x" if source.params.get("kind") == "relu" else None)
    up = None if factor is None else _source(calls, calls.index(source), source.ins[factor])
    if up is None or up.op != "linear":
        return None, f"no scale passes through {source.params.get('kind', source.op)}"
    return _linear(up), None


def _linear(call: Call, heads: int = 1, kv_heads: int = 1, head_dim: int = 0) -> Before:
    slots = tuple(plans.name(call.ins[part]) for part in ("weight", "bias") if part in call.ins)
    return Before(call.path, slots, True, heads, kv_heads, head_dim)


def _source(calls: Sequence[Call], start: int, slot: str) -> Call | None:
    """The last call before `start` that writes the slot."""
    return next((calls[i] for i in range(start - 1, -1, -1) if slot in calls[i].outs.values()), None)
