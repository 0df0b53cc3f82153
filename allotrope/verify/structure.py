"""Preflight, structure: the plan's numbers against the attributes of the original's own modules.

Exact: an epsilon, a rotary frequency or a head count is right or wrong, whatever the noise hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from allotrope.artifact.plan import Call, Plan, name
from allotrope.models.family import Family
from allotrope.models.recipe import Recipe
from allotrope.ops import check
from allotrope.verify.oracle import Oracle
from allotrope.verify.places import FUSED, block_of, parts_of
from allotrope.verify.records import Check, Located
from allotrope.verify.shifts import may_have

_ACTIVATIONS = {  # transformers' classes of an activation → the op's kind
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "ReLU": "relu",
    "SiLUActivation": "silu",
    "SiLU": "silu",
}


def check_structure(plan: Plan, family: Family, recipe: Recipe, truth: Oracle) -> Check:
    """Every call's parameters and biases against the original's modules."""
    looker = _Looker(plan, family, recipe, truth)
    found = [
        Located(block_of(path), call.op, path, detail)
        for call in plan.calls
        for path, detail in looker.complaints(call)
    ]
    if found:
        return Check("structure", False, f"{found[0].path}: {found[0].detail}", tuple(found))
    return Check("structure", True, f"{len(plan.calls)} calls have the original's numbers")


class _Looker:
    """Asks one call after the other what differs from the original."""

    def __init__(self, plan: Plan, family: Family, recipe: Recipe, truth: Oracle) -> None:
        self._plan, self._family, self._recipe, self._truth = plan, family, recipe, truth
        self._modules: dict[str, Any] = dict(truth.model.named_modules())
        self._by_op: dict[str, Callable[[Call], Iterator[tuple[str, str]]]] = {
            "layernorm": self._norm,
            "rmsnorm": self._norm,
            "rotary": self._rotary,
            "attention": self._attention,
            "activation": self._activation,
            "gated": self._activation,
            "add_positions": self._positions,
            "linear": self._linear,
            "linear_codes": self._linear,
            "linear_stored": self._linear,
            "linear_add": self._linear,
            "linear_activation": self._activated,
            "add_norm": self._add_norm,
        }

    def complaints(self, call: Call) -> Iterator[tuple[str, str]]:
        """(path, what differs) for everything wrong with a call."""
        if call.op in self._by_op:
            yield from self._by_op[call.op](call)

    def _module(self, path: str) -> Any:
        site = self._family.site(path, self._recipe)
        return None if site is None else self._modules.get(site.module)

    def _parent(self, path: str) -> Any:
        site = self._family.site(path, self._recipe)
        return None if site is None else self._modules.get(site.module.rpartition(".")[0])

    def _compare(self, call: Call, what: str, expected: Any) -> Iterator[tuple[str, str]]:
        if expected is not None and call.params.get(what) != expected:
            yield call.path, f"{what} is {call.params.get(what)}, the original's is {expected}"

    def _norm(self, call: Call) -> Iterator[tuple[str, str]]:
        module = self._module(call.path)
        if module is not None:
            yield from self._compare(call, "eps", getattr(module, "variance_epsilon", getattr(module, "eps", None)))

    def _add_norm(self, call: Call) -> Iterator[tuple[str, str]]:
        if "weight" in call.ins:
            yield from self._norm(replace(call, path=name(call.ins["weight"]).removesuffix(".weight")))

    def _positions(self, call: Call) -> Iterator[tuple[str, str]]:
        module = self._module(call.path)
        if module is not None:
            offset = getattr(module, "offset", 0)
            if call.params.get("offset", 0) != offset:
                yield call.path, f"offset is {call.params.get('offset', 0)}, the original's is {offset}"

    def _attention(self, call: Call) -> Iterator[tuple[str, str]]:
        module, config = self._parent(f"{block_of(call.path)}.attn.o"), self._truth.model.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        yield from self._compare(call, "heads", heads)
        yield from self._compare(call, "kv_heads", getattr(config, "num_key_value_heads", None) or heads)
        yield from self._compare(call, "head_dim", head_dim)
        yield from self._compare(call, "scale", getattr(module, "scaling", None))
        window = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
        yield from self._compare(call, "window", window or 0)

    def _activation(self, call: Call) -> Iterator[tuple[str, str]]:
        block = block_of(call.path)
        for owner in (self._parent(f"{block}.mlp.down"), self._module(block)):
            for attribute in ("act", "act_fn", "activation_fn"):
                function = getattr(owner, attribute, None)
                kind = _ACTIVATIONS.get(type(function).__name__)
                if kind is not None:
                    yield from self._compare(call, "kind", kind)
                    return

    def _activated(self, call: Call) -> Iterator[tuple[str, str]]:
        yield from self._linear(call)
        yield from self._activation(call)

    def _rotary(self, call: Call) -> Iterator[tuple[str, str]]:
        rotary = [m for m in self._modules.values() if "RotaryEmbedding" in type(m).__name__]
        if not rotary:
            yield call.path, "the original has no rotary positions"
            return
        theirs, kind = self._truth.in_double(rotary[0]).inv_freq, str(rotary[0].rope_type)
        ours = frequencies(call)
        spec = self._truth.model.config.rope_parameters
        same = ours.shape == theirs.shape and self._equal(ours, theirs)
        if not same:
            yield call.path, f"rotary frequencies differ from the original's (base {call.params['base']})"
        if kind == "dynamic":
            yield from self._compare(call, "factor", spec["factor"])
            yield from self._compare(call, "original_len", rotary[0].original_max_seq_len)

    def _equal(self, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        """Frequency by frequency equal, to what the truth's precision can tell."""
        one = torch.ones(1, dtype=torch.float64)
        exact = check.compare(one, one)
        ratio = ours / theirs
        return check.within(check.compare(ratio, torch.ones_like(ratio)), exact, self._truth.precision) is None

    def _linear(self, call: Call) -> Iterator[tuple[str, str]]:
        operand = "codes" if call.op == "linear_codes" else "weight"
        weight = self._plan.weights[name(call.ins[operand])]
        bias = name(call.ins["bias"]) if "bias" in call.ins else None
        biased = set() if bias is None else {slot for slot, _ in self._plan.weights[bias].parts}
        for (path, _), (slot, shape) in zip(parts_of(call, self._plan), weight.parts, strict=True):
            path = path if call.op in FUSED else slot.removesuffix(f".{operand}")  # noqa: PLW2901
            site = self._family.site(path, self._recipe)
            if site is None or site.module not in self._modules:
                continue
            theirs = self._truth.parameter(f"{site.module}.bias")
            if theirs is not None and site.columns is not None:
                theirs = theirs[site.columns[0] : site.columns[1]]
            nonzero = theirs is not None and bool(theirs.any())
            if nonzero and f"{path}.bias" not in biased:
                yield path, "it has no bias, the original's has one"
            if theirs is None and f"{path}.bias" in biased and not may_have(self._plan, self._recipe, path):
                yield path, "it has a bias, the original's has none"
            width = getattr(self._modules[site.module], "out_features", None)
            if width is not None and site.columns is None and width != shape[0]:
                yield path, f"its weight is {list(shape)}, the original's gives {width} channels"


def frequencies(call: Call) -> torch.Tensor:
    """A rotary call's inverse frequencies up to the length where a dynamic scaling sets in, from its numbers alone."""
    params = call.params
    dim = int(params["dim"])
    found = float(params["base"]) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    scaling = params.get("scaling", "none")
    if scaling == "linear":
        return found / float(params["factor"])
    if scaling != "llama3":
        return found
    factor, length = float(params["factor"]), float(params["original_len"])
    low, high = float(params["low_freq"]), float(params["high_freq"])
    turns = length * found / (2 * torch.pi)  # how often each frequency turns within the original length
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return found / factor * (1 - blend) + found * blend
