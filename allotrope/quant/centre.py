"""Keys less their mean, where the cache keeps codes and nothing turns keys on their way into it.

    softmax over j of q·(k_j − c)   =   softmax over j of q·k_j        for −q·c is the same for every j

So one vector may be taken off all keys of a layer, and what a narrow cache's scale, the largest of a token's channels,
then has to span is what differs between tokens. It becomes the bias of the layer that gives the keys, and costs nothing
when the engine runs. A rotation between the two would turn the vector with each token's position: there it stays away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan, Weight
from allotrope.models.model import Model
from allotrope.ops.packing import RawArray
from allotrope.quant.narrow import wide_weight
from allotrope.quant.narrowed import Narrowed
from allotrope.quant.policy import Policy
from allotrope.quant.streamed import Source

CENTRED = "less their mean"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BETWEEN = {"rotary": "rotary turns them", "rmsnorm": "a norm gives them", "layernorm": "a norm gives them"}


def keys(plan: Plan, layer: int) -> Call | str:
    """The linear layer whose output is kept as this layer's keys as it is, or why none is."""
    calls = list(plan.calls)
    at, write = next((i, call) for i, call in enumerate(calls) if call.outs.get("k_cache") == f"c:{layer}.k")
    slot = write.ins["k"]
    source = next(call for call in reversed(calls[:at]) if slot in call.outs.values())
    return source if source.op == "linear" else _BETWEEN.get(source.op, f"{source.op} gives them")


def worded(policy: Policy, plan: Plan, why_not: str | None) -> Policy:
    """The policy that says of each cache of codes whether its keys lose their mean; `why_not` if none is to."""
    said = {}
    for layer in plan.cache.coded:
        found = keys(plan, layer)
        reason = found if isinstance(found, str) else why_not
        said[plans.kv_path(layer)] = CENTRED if reason is None else f"with their mean: {reason}"
    return replace(policy, keys=said)


def centred_layers(policy: Policy) -> list[int]:
    """The layers whose keys lose their mean."""
    return [int(path.split(".")[1]) for path, said in policy.keys.items() if said == CENTRED]


def centred_keys(policy: Policy, plan: Plan) -> list[str]:
    """The paths of the linear calls that give these keys."""
    found = (keys(plan, layer) for layer in centred_layers(policy))
    return [call.path for call in found if isinstance(call, Call)]


def means(source: Source, ids: torch.Tensor, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The mean over all tokens of what the wide model's layers give as keys, in fp64, by the layer's path."""
    states, hidden = source.embedded(list(torch.split(ids, 1))), f"b:{source.plan.hidden}"
    wanted = {f"blocks.{layer}": keys(source.plan, layer) for layer in layers}
    found = dict[str, torch.Tensor]()
    for name, calls in source.plan.blocks():
        if not name.startswith("blocks."):
            continue
        weights, call = source.weights(calls), wanted.pop(name, None)
        if isinstance(call, Call):
            ahead, slot = calls[: calls.index(call) + 1], call.outs["out"]
            sums = [source.runs.run(ahead, weights, {hidden: state}, slot).double().sum(0) for state in states]
            found[call.path] = torch.stack(sums).sum(0).cpu() / ids.numel()
        if not wanted:
            break
        states = [source.runs.run(calls, weights, {hidden: state}, hidden) for state in states]
    return found


def biased(plan: Plan, paths: Iterable[str]) -> Plan:
    """The plan in which the layers that give these keys have a bias for what is taken off; no weight is read.

    Where q, k and v had no bias all three get one: they stay alike, and can be one product.
    """
    weights, ins = dict(plan.weights), {call.path: dict(call.ins) for call in plan.calls}
    outs = {call.path: plan.buffers[plans.name(call.outs["out"])].width for call in plan.calls if "x" in call.ins}
    for path in paths:
        stem = path.rpartition(".")[0]
        beside = () if f"{path}.bias" in weights else (f"{stem}.q", f"{stem}.v")
        for side in (path, *beside):
            own = f"{side}.bias"
            if own not in weights:
                weights[own] = Weight(((own, (outs[side],)),))
                ins[side]["bias"] = f"w:{own}"
    return replace(plan, calls=tuple(replace(call, ins=ins[call.path]) for call in plan.calls), weights=weights)


def centred(narrowed: Narrowed, model: Model, found: Mapping[str, torch.Tensor]) -> tuple[Narrowed, dict[str, Any]]:
    """The model with these means taken off its keys by a bias; and of each the sum of squares that was taken.

    A bias that q and v have not had is of zeros.
    """
    plan, arrays, taken = biased(narrowed.plan, found), dict(narrowed.arrays), dict[str, Any]()
    for own in plan.weights.keys() - narrowed.plan.weights.keys():
        arrays[own] = partial(_array, np.zeros(plan.weights[own].parts[0][1], np.float32))
    for path, mean in found.items():
        slot = f"{path}.bias"
        old = wide_weight(model, slot, "cpu") if slot in model.sources else torch.zeros(len(mean))
        new = (old.double() - mean).to(_DTYPES[plan.dtype])
        arrays[slot] = partial(_array, new.float().numpy())
        taken[path] = {"taken": float((new.double() - old.double()).square().sum())}
    return replace(narrowed, plan=plan, arrays=arrays), taken


def _array(values: RawArray) -> RawArray:
    return values
