"""The recipe: a model as a composition of parts, with nothing in it of any checkpoint's names.

A family turns a config into a recipe; `lower` turns a recipe into a plan. Between the two stand the
*slots*, the canonical names of the weights, which follow from the recipe alone (`slots`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from allotrope.ops.contract import Scalar


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis. `kind` is "layer" or "rms"; a layer norm may lack weight or bias."""

    kind: str
    eps: float
    weight: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Rotary:
    """Rotary positions over the first `dim` channels of each head, in halves (not pairs).

    `scaling` is none, linear, llama3, dynamic (the base follows max(prompt length, position + 1)) or
    qwen_ntk (it follows the prompt length in powers of two); `numbers` are that scaling's parameters,
    under the names of the op `rotary`.
    """

    dim: int
    base: float
    scaling: str = "none"
    numbers: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Attention:
    """Causal attention. `window` counts the keys that a query sees, itself included; None: all."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False  # of q, k and v
    out_bias: bool = False
    rotary: Rotary | None = None
    window: int | None = None
    qk_norm: Norm | None = None  # over each head, before the rotation
    logn: int | None = None  # log-n attention: the training length beyond which q grows
    scale: float | None = None  # None: head_dim ** -0.5


@dataclass(frozen=True)
class Mlp:
    """down(act(up)) or, gated, down(act(gate) * up)."""

    width: int
    activation: str  # gelu gelu_tanh relu silu
    gated: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Block:
    """One layer: attention, then MLP, each with its norm before it or (post) after its residual sum."""

    attention: Attention
    mlp: Mlp
    norm: Norm
    post_norm: bool = False


@dataclass(frozen=True)
class Positions:
    """A learned table of `size` rows in all; position p reads row p + offset."""

    size: int
    offset: int = 0


@dataclass(frozen=True)
class Recipe:
    """A decoder-only language model."""

    vocab: int
    hidden: int
    max_len: int  # the longest sequence that the positions allow
    blocks: tuple[Block, ...]
    final_norm: Norm | None
    positions: Positions | None = None
    embed_width: int | None = None  # None: hidden; otherwise projections lead in and out
    tied: bool = False  # the head is the embedding
    head_bias: bool = False

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(layers, kv heads, head dim); every layer has the same, checked by the families."""
        attention = self.blocks[0].attention
        return len(self.blocks), attention.kv_heads, attention.head_dim


def slots(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Every weight that the recipe needs, by canonical name, with its shape ([out, in] for matrices)."""
    hidden, width = recipe.hidden, recipe.embed_width or recipe.hidden
    found: dict[str, tuple[int, ...]] = {"embed.weight": (recipe.vocab, width)}

    def linear(path: str, out: int, into: int, bias: bool) -> None:
        found[f"{path}.weight"] = (out, into)
        if bias:
            found[f"{path}.bias"] = (out,)

    def norm(path: str, spec: Norm | None, size: int) -> None:
        if spec is not None and spec.weight:
            found[f"{path}.weight"] = (size,)
        if spec is not None and spec.bias:
            found[f"{path}.bias"] = (size,)

    if recipe.embed_width is not None:
        linear("embed.project", hidden, width, bias=False)
    if recipe.positions is not None:
        found["embed.positions"] = (recipe.positions.size, hidden)
    for i, block in enumerate(recipe.blocks):
        attention, mlp, path = block.attention, block.mlp, f"blocks.{i}"
        norm(f"{path}.attn.norm", block.norm, hidden)
        linear(f"{path}.attn.q", attention.heads * attention.head_dim, hidden, attention.bias)
        linear(f"{path}.attn.k", attention.kv_heads * attention.head_dim, hidden, attention.bias)
        linear(f"{path}.attn.v", attention.kv_heads * attention.head_dim, hidden, attention.bias)
        norm(f"{path}.attn.q_norm", attention.qk_norm, attention.head_dim)
        norm(f"{path}.attn.k_norm", attention.qk_norm, attention.head_dim)
        linear(f"{path}.attn.o", hidden, attention.heads * attention.head_dim, attention.out_bias)
        norm(f"{path}.mlp.norm", block.norm, hidden)
        if mlp.gated:
            linear(f"{path}.mlp.gate", mlp.width, hidden, mlp.bias)
        linear(f"{path}.mlp.up", mlp.width, hidden, mlp.bias)
        linear(f"{path}.mlp.down", hidden, mlp.width, mlp.bias)
    norm("head.norm", recipe.final_norm, hidden)
    if recipe.embed_width is not None:
        linear("head.project", width, hidden, bias=False)
    if not recipe.tied:
        found["head.weight"] = (recipe.vocab, width)
    if recipe.head_bias:
        found["head.bias"] = (recipe.vocab,)
    return found
