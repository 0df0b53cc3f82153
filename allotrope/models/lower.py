"""Lowering: a recipe becomes the reference plan, a list of op calls over named buffers.

Buffers are shared by all blocks, so a plan's activations take the memory of one block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Buffer, Cache, Call, Plan, Weight
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Recipe, Rotary, slots
from allotrope.ops.contract import Scalar
from allotrope.ops.kv_rows import COMPUTE
from allotrope.ops.sample import ADJUSTMENTS

_PLACES = ("row_starts", "row_first", "page_table", "spans", "memo")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seeds", "sample_positions", *ADJUSTMENTS)


@dataclass
class _Draft:
    """A plan being written. Buffers are declared by first use."""

    recipe: Recipe
    shapes: Mapping[str, tuple[int, ...]]
    buffers: dict[str, Buffer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def call(
        self,
        path: str,
        op: str,
        ins: Mapping[str, str],
        out: str,
        width: int,
        rows: str = TOKENS,
        params: Mapping[str, Scalar] | None = None,
    ) -> str:
        """Append a call with one output; returns the output buffer's name."""
        self.buffers.setdefault(out, Buffer(rows, width))
        self.calls.append(Call(path, op, dict(ins), {"out": f"b:{out}"}, dict(params or {})))
        return out

    def linear(self, path: str, x: str, out: str, rows: str = TOKENS, weight: str | None = None) -> str:
        """A linear call; its bias is there when the recipe has the slot."""
        slot = weight or f"{path}.weight"
        ins = {"x": f"b:{x}", "weight": f"w:{slot}"}
        if f"{path}.bias" in self.shapes:
            ins["bias"] = f"w:{path}.bias"
        return self.call(path, "linear", ins, out, self.shapes[slot][0], rows)

    def norm(self, path: str, spec: Norm, x: str, out: str, rows: str = TOKENS, heads: int = 1) -> str:
        """A norm call; `heads` > 1 normalises each head by itself."""
        ins = {"x": f"b:{x}"}
        for part in ("weight", "bias"):
            if f"{path}.{part}" in self.shapes:
                ins[part] = f"w:{path}.{part}"
        params: dict[str, Scalar] = {"eps": spec.eps}
        if spec.kind == "rms":
            params["heads"] = heads
        return self.call(path, f"{spec.kind}norm", ins, out, self.buffers[x].width, rows, params)

    def add(self, path: str, a: str, b: str, out: str) -> str:
        """The residual sum."""
        return self.call(path, "add", {"a": f"b:{a}", "b": f"b:{b}"}, out, self.buffers[a].width)


def lower(recipe: Recipe, dtype: str = "fp32") -> Plan:
    """The reference plan of `recipe`, with every weight unpacked and every call on the reference tactic."""
    draft = _Draft(recipe, slots(recipe))
    _embed(draft)
    for i, block in enumerate(recipe.blocks):
        _block(draft, i, block)
    _head(draft)
    layers, kv_heads, head_dim = recipe.cache_shape
    return Plan(
        dtype=dtype,
        vocab=recipe.vocab,
        max_len=recipe.max_len,
        hidden="x",
        buffers=draft.buffers,
        weights={slot: Weight(((slot, shape),)) for slot, shape in draft.shapes.items()},
        cache=Cache(kv_heads, head_dim, (COMPUTE,) * layers),
        calls=tuple(draft.calls),
    )


def _embed(draft: _Draft) -> None:
    recipe = draft.recipe
    width = recipe.embed_width or recipe.hidden
    steps = ["embed"]
    if recipe.embed_width is not None:
        steps.append("embed.project")
    if recipe.positions is not None:
        steps.append("embed.positions")
    x = ""
    for step in steps:
        out = "x" if step == steps[-1] else step
        if step == "embed":
            x = draft.call(step, "embed", {"ids": "s:tokens", "table": "w:embed.weight"}, out, width)
        elif step == "embed.project":
            x = draft.linear(step, x, out)
        elif recipe.positions is not None:
            ins = {"x": f"b:{x}", "table": "w:embed.positions", "positions": "s:positions"}
            params: dict[str, Scalar] = {"offset": recipe.positions.offset}
            x = draft.call(step, "add_positions", ins, out, recipe.hidden, params=params)


def _block(draft: _Draft, i: int, block: Block) -> None:
    path = f"blocks.{i}"
    if block.post_norm:
        out = _attention(draft, f"{path}.attn", i, block.attention, "x")
        total = draft.add(f"{path}.attn.add", "x", out, "sum")
        y = draft.norm(f"{path}.attn.norm", block.norm, total, "y")
        out = _mlp(draft, f"{path}.mlp", block.mlp, y)
        total = draft.add(f"{path}.mlp.add", y, out, "sum")
        draft.norm(f"{path}.mlp.norm", block.norm, total, "x")
        return
    normed = draft.norm(f"{path}.attn.norm", block.norm, "x", "normed")
    out = _attention(draft, f"{path}.attn", i, block.attention, normed)
    y = draft.add(f"{path}.attn.add", "x", out, "y")
    normed = draft.norm(f"{path}.mlp.norm", block.norm, y, "normed")
    out = _mlp(draft, f"{path}.mlp", block.mlp, normed)
    draft.add(f"{path}.mlp.add", y, out, "x")


def _attention(draft: _Draft, path: str, layer: int, spec: Attention, x: str) -> str:
    q, k, v = (draft.linear(f"{path}.{part}", x, part) for part in "qkv")
    if spec.qk_norm is not None:
        q = draft.norm(f"{path}.q_norm", spec.qk_norm, q, "q_normed", heads=spec.heads)
        k = draft.norm(f"{path}.k_norm", spec.qk_norm, k, "k_normed", heads=spec.kv_heads)
    if spec.rotary is not None:
        q = _rotate(draft, f"{path}.q_rotary", spec.rotary, spec.heads, spec.head_dim, q, "q_rotated")
        k = _rotate(draft, f"{path}.k_rotary", spec.rotary, spec.kv_heads, spec.head_dim, k, "k_rotated")
    if spec.logn is not None:
        ins = {"x": f"b:{q}", "positions": "s:positions"}
        width = spec.heads * spec.head_dim
        q = draft.call(f"{path}.logn", "logn", ins, "q_logn", width, params={"length": spec.logn})
    caches = {"k_cache": f"c:{layer}.k", "v_cache": f"c:{layer}.v"}
    draft.calls.append(
        Call(f"{path}.kv_write", "kv_write", {"k": f"b:{k}", "v": f"b:{v}", "slots": "s:kv_slots", **caches}, caches)
    )
    ins = {"q": f"b:{q}", **caches} | {name: f"s:{name}" for name in _PLACES}
    params: dict[str, Scalar] = {
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "scale": spec.head_dim**-0.5 if spec.scale is None else spec.scale,
        "window": spec.window or 0,
    }
    context = draft.call(f"{path}.attention", "attention", ins, "context", spec.heads * spec.head_dim, params=params)
    return draft.linear(f"{path}.o", context, "attn_out")


def _rotate(draft: _Draft, path: str, spec: Rotary, heads: int, head_dim: int, x: str, out: str) -> str:
    ins = {"x": f"b:{x}", "positions": "s:positions", "prompt_lens": "s:prompt_lens", "memo": "s:memo"}
    params: dict[str, Scalar] = {
        "heads": heads,
        "head_dim": head_dim,
        "dim": spec.dim,
        "base": spec.base,
        "scaling": spec.scaling,
        **spec.numbers,
    }
    return draft.call(path, "rotary", ins, out, heads * head_dim, params=params)


def _mlp(draft: _Draft, path: str, spec: Mlp, x: str) -> str:
    params: dict[str, Scalar] = {"kind": spec.activation}
    if spec.gated:
        gate = draft.linear(f"{path}.gate", x, "gate")
        up = draft.linear(f"{path}.up", x, "up")
        ins = {"gate": f"b:{gate}", "up": f"b:{up}"}
        acted = draft.call(f"{path}.act", "gated", ins, "acted", spec.width, params=params)
    else:
        up = draft.linear(f"{path}.up", x, "up")
        acted = draft.call(f"{path}.act", "activation", {"x": f"b:{up}"}, "acted", spec.width, params=params)
    return draft.linear(f"{path}.down", acted, "mlp_out")


def _head(draft: _Draft) -> None:
    recipe = draft.recipe
    ins = {"x": "b:x", "index": "s:logit_rows"}
    x = draft.call("head.select", "select_rows", ins, "last", recipe.hidden, LOGITS)
    if recipe.final_norm is not None:
        x = draft.norm("head.norm", recipe.final_norm, x, "last_normed", LOGITS)
    if recipe.embed_width is not None:
        x = draft.linear("head.project", x, "last_projected", LOGITS)
    weight = "embed.weight" if recipe.tied else "head.weight"
    draft.linear("head", x, "logits", LOGITS, weight)
    draft.buffers["sampled"] = Buffer(SAMPLES, 1, "int64")
    draft.buffers["logprobs"] = Buffer(SAMPLES, 1, "fp32")
    sampling = {"logits": "b:logits", "rows": "s:sample_rows"} | {name: f"s:{name}" for name in SAMPLING}
    draft.calls.append(Call("head.sample", "sample", sampling, {"tokens": "b:sampled", "logprobs": "b:logprobs"}))
