"""What might be changed about an engine, as the words that `--predict` takes, and the plan that it would then have.

int8    weights=int8,activations=int8    int4,group_size=128    kv=int8    dtype=bf16    batch=8
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan, Weight
from allotrope.artifact.problems import Load, problem
from allotrope.build.options import DTYPES, KV, WEIGHTS
from allotrope.errors import UsageError
from allotrope.explain.drive import Asked
from allotrope.explain.formats import formats
from allotrope.quant.cache import with_cache
from allotrope.quant.formats import Format, Store
from allotrope.quant.policy import WIDE, Wanted
from allotrope.quant.rewrite import codes_of

_LINEAR = ("linear", "linear_codes", "linear_stored")
_MOST_BATCH = 4096


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 8 else None


_READ: Mapping[str, Callable[[str], Any]] = {
    "weights": lambda text: text if text in (*WEIGHTS, WIDE) else None,
    "activations": lambda text: text if text in ("int8", "fp8") else None,
    "group_size": _whole,
    "asymmetric": {"true": True}.get,
    "kv": lambda text: text if text in KV else None,
    "dtype": lambda text: text if text in DTYPES[1:] else None,
    "batch": lambda text: number if (number := _whole(text)) and number <= _MOST_BATCH else None,
}


@dataclass(frozen=True)
class Change:
    """A change, in the words that asked for it."""

    words: str
    given: Mapping[str, Any]

    @staticmethod
    def parse(words: str) -> Change:
        """A UsageError unless every word is one."""
        given: dict[str, Any] = {}
        for part in words.split(","):
            name, equals, value = part.strip().partition("=")
            if not equals:
                name, value = "weights", name
            read = _READ.get(name.replace("-", "_"))
            found = None if read is None else read(value)
            if found is None:
                known = f"{', '.join(WEIGHTS)}, kv=int8, batch=8, dtype=bf16, or several with commas between"
                raise UsageError(
                    f"--predict is {words[:60]!r}; {part.strip()[:30]!r} is no change", remedy=f"give {known}"
                )
            given[name.replace("-", "_")] = found
        quantising = {
            name: given[name] for name in ("weights", "activations", "group_size", "asymmetric") if name in given
        }
        if given.get("weights") != WIDE:
            Wanted(**quantising)  # what cannot go together is said there
        return Change(words, given)

    def plan(self, plan: Plan) -> Plan:
        """The plan that the engine would have; tactics are still to be chosen where its calls differ."""
        changed = plan
        if "dtype" in self.given:
            changed = replace(changed, dtype=self.given["dtype"])
        if "weights" in self.given:
            changed = _stored(changed, self.given)
        if "kv" in self.given:
            changed = with_cache(changed, self.given["kv"])
        if "batch" not in self.given and formats(changed) == formats(plan):
            raise UsageError(f"--predict is {self.words[:60]!r}: the engine is like that already")
        return changed

    def asked(self, asked: Asked) -> Asked:
        """What it would be asked for."""
        if "batch" not in self.given:
            return asked
        if self.given["batch"] == asked.batch and len(self.given) == 1:
            raise UsageError(f"--predict is {self.words[:60]!r}: that is what --batch says already")
        return replace(asked, batch=self.given["batch"])


def usual(plan: Plan, asked: Asked) -> list[str]:
    """What is worth knowing of an engine: narrower weights than it has, and eight prompts at a time."""
    narrower = "int8" if formats(plan)["weights"] == [plan.dtype] else ""
    return [narrower] if narrower else []


def _stored(plan: Plan, given: Mapping[str, Any]) -> Plan:
    """The plan whose blocks' linear layers are stored in another format."""
    names = ("weights", "group_size", "asymmetric")
    form = None if given["weights"] in (WIDE, plan.dtype) else Wanted(**{n: given[n] for n in names if n in given}).form
    weights, calls = dict(plan.weights), list[Call]()
    for call in plan.calls:
        if call.op in _LINEAR and call.path.startswith("blocks."):
            made, other = _linear(plan, call, form, given.get("activations"))
            weights |= made
            calls.append(other)
        else:
            calls.append(call)
    return replace(plan, calls=tuple(calls), weights=weights)


def _linear(plan: Plan, call: Call, form: Format | Store | None, product: str | None) -> tuple[dict[str, Weight], Call]:
    """A call of the same shape over a weight in that format, under slots of their own."""
    axes = problem(plan, call, Load(1)).axes
    shape = (axes["out"], axes["in"])
    if isinstance(form, Format):
        form.check_shape(shape, call.path)
        parts = dict(codes_of(call.path, form, shape))
        params: dict[str, Any] = {"format": form.name} | ({"activations": product} if product else {})
        op = "linear_codes"
    else:
        dtype = "compute" if form is None else form.name
        parts = {"weight": Weight(((f"{call.path}.weight", shape),), dtype=dtype)}
        op, params = ("linear", {}) if form is None else ("linear_stored", {"store": form.name})
    made = {f"predicted.{call.path}.{part}": weight for part, weight in parts.items()}
    ins = {"x": call.ins["x"]} | {part: f"w:predicted.{call.path}.{part}" for part in parts}
    bias = {"bias": call.ins["bias"]} if "bias" in call.ins else {}
    return made, replace(call, op=op, ins=ins | bias, params=params)


def described(plan: Plan) -> str:
    """The linear layers' and caches' formats in a few words."""
    found = formats(plan)
    kv = "" if found["kv"] == "compute" else f", {found['kv']} keys and values"
    return f"{', '.join(found['weights'])} weights{kv}, computed in {found['dtype']}"


def weight_slots(call: Call) -> list[str]:
    """The names of the weights that a call reads."""
    return [plans.name(slot) for slot in call.ins.values() if plans.kind(slot) == "w"]
