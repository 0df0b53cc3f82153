"""The plan with narrow weights: linear(x, w) becomes linear_codes(x, codes, scales, zeros), and no more changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan, Weight
from allotrope.quant.formats import Format


def rewrite(plan: Plan, formats: Mapping[str, Format]) -> Plan:
    """The plan in which the linear calls at these paths read codes; the slots of their weights are gone."""
    weights, calls = dict(plan.weights), list[Call]()
    for call in plan.calls:
        form = formats.get(call.path)
        if form is None:
            calls.append(call)
            continue
        slot = plans.name(call.ins["weight"])
        shape = plan.weights[slot].parts[0][1]
        narrow = {f"{call.path}.{part}": weight for part, weight in _weights(call.path, form, shape)}
        weights = _in_place_of(slot, narrow, weights)
        ins = {"x": call.ins["x"]} | {name.rpartition(".")[2]: f"w:{name}" for name in narrow}
        if "bias" in call.ins:
            ins["bias"] = call.ins["bias"]
        calls.append(replace(call, op="linear_codes", ins=ins, params={"format": form.name}))
    return replace(plan, calls=tuple(calls), weights=weights)


def _weights(path: str, form: Format, shape: tuple[int, ...]) -> Iterator[tuple[str, Weight]]:
    """What stands for a weight [out, in]: operand and weight."""
    out, width = shape

    def weight(part: str, columns: int, dtype: str) -> tuple[str, Weight]:
        return part, Weight(((f"{path}.{part}", (out, columns)),), dtype=dtype)

    yield weight("codes", width * form.bits // 8, "uint8")
    yield weight("scales", form.groups(width), "fp32" if form.group is None else "fp16")
    if not form.symmetric:
        yield weight("zeros", form.groups(width), "uint8")


def _in_place_of(slot: str, narrow: Mapping[str, Weight], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights in their order, with `narrow` where `slot` was."""
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        found |= narrow if name == slot else {name: weight}
    return found
