"""Where a plan's values can be seen in the original: block by block, and op by op.

A module's output is seen after it and, where the original gives a value no module of its own (attention's
result, the activation, the first residual sum), before the module that reads it. Rotated queries and keys
follow from the original's own cosines and sines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from allotrope.artifact.plan import Call, Plan, kind, name
from allotrope.models.family import Family, Site
from allotrope.models.recipe import Recipe
from allotrope.ops.kv_codes import decoded
from allotrope.ops.kv_rows import COMPUTE
from allotrope.verify.oracle import LOGITS, ROTATION, Oracle, Probe, Values

EMBED, HEAD = "embed", "head"
FUSED = {"linear": "weight", "linear_codes": "codes", "linear_stored": "weight"}
"""Linear ops, and the operand whose parts say what was fused side by side."""
_READER = {"attn.attention": "attn.o", "mlp.act": "mlp.down"}  # call: the module that reads its result


@dataclass(frozen=True)
class Place:
    """One value of the plan that the original shows. `columns` are the call's, `site_columns` the original's."""

    path: str  # of the call, or of the part of a fused one
    op: str
    block: str
    probe: str  # a name among the probes, or LOGITS
    columns: tuple[int, int] | None = None
    site_columns: tuple[int, int] | None = None
    rotated_heads: int | None = None  # the value is what stands at the probe, rotated
    cache: str | None = None  # the value was written into this cache: moved bit for bit, or coded
    form: str = COMPUTE  # the cache's
    heads: int = 1  # in a row of the cache, each of `head_dim` channels
    head_dim: int = 1
    operand: str = "out"  # the call's, that holds it

    def of_engine(self, outs: Mapping[str, torch.Tensor], cache_rows: torch.Tensor) -> torch.Tensor:
        """This place's columns of the call's output: a view; of a cache, the rows that were written."""
        if self.cache is not None:
            rows = outs[self.cache].flatten(0, 1)[cache_rows]
            return rows if self.form == COMPUTE else self._decoded(rows)
        out = outs[self.operand]
        return out if self.columns is None else out[:, self.columns[0] : self.columns[1]]

    def _decoded(self, rows: torch.Tensor) -> torch.Tensor:
        """What a narrow cache's rows mean, in fp32."""
        return decoded(rows, self.heads, self.head_dim, self.form, torch.float32).flatten(1)

    def of_oracle(self, values: Values, round_to: torch.dtype | None = None) -> torch.Tensor:
        """What the original has here; a rotation's input is first rounded, as every op's input is."""
        found = values[self.probe]
        if self.site_columns is not None:
            found = found[:, self.site_columns[0] : self.site_columns[1]]
        if self.rotated_heads is None:
            return found
        if round_to is not None:
            found = found.to(round_to).to(found.dtype)
        return rotated(found, values[ROTATION], self.rotated_heads)


def rotated(x: torch.Tensor, rotation: torch.Tensor, heads: int) -> torch.Tensor:
    """`x` turned by cosines and sines `[2, rows, dim]`, in halves, over the first `dim` channels of each head."""
    cos, sin = (part[:, None, :] for part in rotation)
    dim = cos.shape[-1]
    parted = x.reshape(len(x), heads, -1)
    turned, rest = parted[..., :dim], parted[..., dim:]
    a, b = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-b, a), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1).reshape(x.shape)


def block_probes(oracle: Oracle) -> dict[str, Probe]:
    """The residual stream before the first block and after each; the head's is LOGITS, always there."""
    found = {EMBED: Probe(oracle.blocks[0], "in")}
    return found | {f"blocks.{i}": Probe(block, "out") for i, block in enumerate(oracle.blocks)}


def block_of(path: str) -> str:
    """`embed`, `blocks.3` or `head`: the block that a call belongs to."""
    parts = path.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


def parts_of(call: Call, plan: Plan) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """A call's values: itself or, where several were fused side by side, each under its own path with its columns."""
    if call.path.endswith(".qk_rotary"):
        stem, columns = call.path.removesuffix("qk_rotary"), plan.buffers
        for part in ("q", "k"):
            out = columns[f"{part}_rotated"]
            yield f"{stem}{part}_rotary", (out.start, out.start + out.width)
        return
    operand = FUSED.get(call.op, "")
    weight = plan.weights.get(name(call.ins.get(operand, "")))
    if weight is None or len(weight.parts) == 1:
        yield call.path, None
        return
    start = 0
    for slot, shape in weight.parts:
        yield slot.removesuffix(f".{operand}"), (start, start + shape[0])
        start += shape[0]


def norm_behind(call: Call) -> str | None:
    """The path that the norm had which is fused to a sum; None where there is none, or nothing tells."""
    return name(call.ins["weight"]).removesuffix(".weight") if call.op == "add_norm" and "weight" in call.ins else None


class Places:
    """Every place of a plan's chosen blocks, with the probes that show them."""

    def __init__(self, plan: Plan, family: Family, recipe: Recipe, oracle: Oracle, blocks: Sequence[str]) -> None:
        self._family, self._recipe, self._oracle = family, recipe, oracle
        cache = plan.cache
        self._kept: dict[str, Any] = {"heads": cache.kv_heads, "head_dim": cache.head_dim}
        self._forms = cache.slots
        self.probes: dict[str, Probe] = {}
        self.by_call: dict[str, tuple[Place, ...]] = {}
        for call in plan.calls:
            found = list[Place | None]()
            if block_of(call.path) in blocks:
                if call.op == "kv_write":
                    found += [self._cached(call, which) for which in "kv"]
                elif kind(call.outs.get("out", "")) == "b":
                    found += [self._place(path, columns, call) for path, columns in parts_of(call, plan)]
            norm = norm_behind(call)
            if norm is not None and block_of(norm) in blocks:
                behind = self._place(norm, None, call)
                found.append(None if behind is None else replace(behind, operand="normed"))
            if found:
                self.by_call[call.path] = tuple(place for place in found if place is not None)

    def __iter__(self) -> Iterator[Place]:
        for places in self.by_call.values():
            yield from places

    def _place(self, path: str, columns: tuple[int, int] | None, call: Call) -> Place | None:
        block = block_of(path)
        if call.op in ("rotary", "logn"):
            found = self._turned(path, call.op, block, "k" if path.endswith(".k_rotary") else "q")
            return None if found is None else replace(found, columns=columns)
        seen = self._seen(path, block)
        if seen is None:
            return None
        probe, site_columns = seen
        return Place(path, call.op, block, probe, columns, site_columns)

    def _cached(self, call: Call, which: str) -> Place | None:
        """What must stand in the cache: values as they were projected, keys as attention compares them."""
        block = block_of(call.path)
        path = f"{call.path}.{which}"
        kept = {"form": self._forms[name(call.ins["k_cache"])], **self._kept}
        if which == "k":
            found = self._turned(path, call.op, block, "k")
            if found is not None:
                return replace(found, cache="k_cache", **kept)
        seen = self._seen(f"{block}.attn.{which}", block)
        if seen is None:
            return None
        return Place(path, call.op, block, seen[0], None, seen[1], cache=f"{which}_cache", **kept)

    def _turned(self, path: str, op: str, block: str, which: str) -> Place | None:
        """A rotation, or log-n, which is the identity wherever the oracle is the same model."""
        spec = self._recipe.blocks[int(block.partition(".")[2])].attention
        seen = self._seen(f"{block}.attn.{which}_norm", block) or self._seen(f"{block}.attn.{which}", block)
        modules = self._oracle.model.named_modules()
        tables = [name for name, module in modules if "RotaryEmbedding" in type(module).__name__]
        if seen is None or not tables or spec.rotary is None:
            return None
        self.probes[ROTATION] = Probe(tables[0], "out")
        heads = spec.kv_heads if which == "k" else spec.heads
        return Place(path, op, block, seen[0], None, seen[1], heads)

    def _seen(self, path: str, block: str) -> tuple[str, tuple[int, int] | None] | None:
        """The probe that shows the value at `path`, made if it is new, and the columns to look at."""
        if path == "head":
            return LOGITS, None
        inner = path.removeprefix(f"{block}.")
        side, site = "out", None
        if inner in _READER:
            side, site = "in", self._site(f"{block}.{_READER[inner]}")
        elif path == self._last_of_embedding():
            return self._probe(Probe(self._oracle.blocks[0], "in")), None
        elif path == "head.select":
            return self._probe(Probe(self._oracle.blocks[-1], "out")), None
        elif inner in ("attn.add", "mlp.add"):
            return self._sum(block, inner)
        else:
            site = self._site(path)
        return None if site is None else (self._probe(Probe(site.module, side)), site.columns)

    def _sum(self, block: str, inner: str) -> tuple[str, None] | None:
        post = self._recipe.blocks[int(block.partition(".")[2])].post_norm
        if inner == "mlp.add" and not post:
            return self._probe(Probe(self._oracle.blocks[int(block.partition(".")[2])], "out")), None
        reader = self._site(f"{block}.mlp.norm" if inner == "mlp.add" or not post else f"{block}.attn.norm")
        return None if reader is None else (self._probe(Probe(reader.module, "in")), None)

    def _last_of_embedding(self) -> str:
        if self._recipe.positions is not None:
            return "embed.positions"
        return "embed.project" if self._recipe.embed_width is not None else "embed"

    def _site(self, path: str) -> Site | None:
        site = self._family.site(path, self._recipe)
        if site is None:
            return None
        modules = dict(self._oracle.model.named_modules())
        return site if site.module in modules else None

    def _probe(self, probe: Probe) -> str:
        key = f"{probe.module}:{probe.side}"
        self.probes[key] = probe
        return key
