"""The plan over narrow weights. Every call keeps its path, inputs and outputs, and nothing else changes.

linear(x, weight)  →  linear_codes(x, codes, scales, zeros)      where the policy has codes
                   →  linear_stored(x, weight)                   where it has 16 bits
embed(ids, table)  →  embed_codes, embed_stored                  where the table is such a layer's weight, too
                   →  embed_stored                               where it keeps the checkpoint's 16 bits
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan, Weight
from allotrope.ops.contract import Scalar
from allotrope.quant.formats import Format
from allotrope.quant.policy import Policy


def rewrite(plan: Plan, policy: Policy) -> Plan:
    """The plan that reads what the policy stores. Slots of weights that became codes are gone."""
    narrow, stored = policy.narrow, policy.stored
    weights, calls = dict(plan.weights), list[Call]()
    heads = {call.ins["weight"]: call.path for call in plan.calls if call.op == "linear"}
    for call in plan.calls:
        tied = heads.get(call.ins["table"], "") if call.op == "embed" else ""
        if tied in narrow:
            calls.append(_looked_up(call, narrow[tied], tied))
        elif tied in stored:
            calls.append(replace(call, op="embed_stored", params={"store": stored[tied].name}))
        elif call.path in policy.tables:
            slot, store = plans.name(call.ins["table"]), policy.tables[call.path].name
            weights[slot] = replace(weights[slot], dtype=store)
            calls.append(replace(call, op="embed_stored", params={"store": store}))
        elif call.path in narrow:
            slot = plans.name(call.ins["weight"])
            form, shape = narrow[call.path], plan.weights[slot].parts[0][1]
            codes = {f"{call.path}.{part}": weight for part, weight in codes_of(call.path, form, shape)}
            weights = _in_place_of(slot, codes, weights)
            calls.append(_coded(call, codes, form, policy.product(call.path)))
        elif call.path in stored:
            slot, store = plans.name(call.ins["weight"]), stored[call.path].name
            weights[slot] = replace(weights[slot], dtype=store)
            calls.append(replace(call, op="linear_stored", params={"store": store}))
        else:
            calls.append(call)
    return replace(plan, calls=tuple(calls), weights=weights)


def codes_of(path: str, form: Format, shape: tuple[int, ...]) -> Iterator[tuple[str, Weight]]:
    """What stands for the weight [out, in] of the layer at `path`: operands of linear_codes and weights of a plan."""
    out, width = shape

    def weight(part: str, columns: int, dtype: str) -> tuple[str, Weight]:
        return part, Weight(((f"{path}.{part}", (out, columns)),), dtype=dtype)

    yield weight("codes", width * form.bits // 8, "uint8")
    yield weight("scales", form.groups(width), str(form.scale_dtype).replace("torch.float", "fp"))
    if not form.symmetric:
        yield weight("zeros", form.groups(width), "uint8")


def _coded(call: Call, codes: Mapping[str, Weight], form: Format, activations: str | None) -> Call:
    params: dict[str, Scalar] = {"format": form.name}
    if activations is not None:
        params["activations"] = activations
    ins = {"x": call.ins["x"]} | {name.rpartition(".")[2]: f"w:{name}" for name in codes}
    bias = {"bias": call.ins["bias"]} if "bias" in call.ins else {}
    return replace(call, op="linear_codes", ins=ins | bias, params=params)


def _looked_up(call: Call, form: Format, head: str) -> Call:
    parts = ("codes", "scales") if form.symmetric else ("codes", "scales", "zeros")
    ins = {"ids": call.ins["ids"]} | {part: f"w:{head}.{part}" for part in parts}
    return replace(call, op="embed_codes", ins=ins, params={"format": form.name})


def _in_place_of(slot: str, codes: Mapping[str, Weight], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights in their order, with `codes` where `slot` was."""
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        found |= codes if name == slot else {name: weight}
    return found
