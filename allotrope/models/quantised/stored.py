"""How a checkpoint's quantised weights are stored, as its config states it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from allotrope.errors import CheckpointError
from allotrope.models.hfconfig import MANDATORY, Key, check, shown
from allotrope.models.quantised.patterns import matches

REMEDY = "give the original checkpoint instead"
PER_CHANNEL = -1


@dataclass(frozen=True)
class Stored:
    """One way of storing, the same for every quantised module of a checkpoint.

    GPTQ and AWQ store unsigned codes; symmetric GPTQ's zero point is always half their range, so that its codes are
    signed ones in disguise. compressed-tensors' codes are signed, its zero points too, and `floating` ones are e4m3.
    """

    method: str  # gptq, awq or compressed-tensors
    bits: int
    group: int  # inputs that share a scale; −1: all inputs of an output do
    symmetric: bool
    desc_act: bool = False  # inputs were put into groups by their activations: an index says who is where
    zero_offset: int = 0  # GPTQ's first layout stores zero − 1
    form: str = ""  # compressed-tensors' format
    floating: bool = False
    per_tensor: bool = False  # one scale for the whole weight
    activations: str | None = None  # "int8" or "fp8", rounded per token as the model runs
    targets: tuple[str, ...] = ()  # if any: only modules that one of these names are quantised
    ignore: tuple[str, ...] = ()  # modules left as they were: names, or patterns behind "re:"

    @property
    def number(self) -> str:
        """What one code is: fp8, int4, int8, uint4 or uint8."""
        if self.floating:
            return "fp8"
        signed = self.method == "compressed-tensors" or self.symmetric
        return f"{'int' if signed else 'uint'}{self.bits}"

    @property
    def words(self) -> str:
        """How a message calls it."""
        scale = "one scale per channel" if self.group == PER_CHANNEL else f"groups of {self.group}"
        scale = "one scale per tensor" if self.per_tensor else scale
        return f"{self.method} weights ({self.number}, {scale})"

    def ignores(self, module: str) -> str | None:
        """The entry of `ignore` that says that this module is not quantised."""
        # transformers and AutoAWQ take a name for whatever lies below it; compressed-tensors means it exactly
        below = self.method != "compressed-tensors"
        return next((entry for entry in self.ignore if matches(entry, module, below=below)), None)

    def targeted(self, module: str) -> bool:
        """Whether the config lets this module be quantised."""
        return not self.targets or any(matches(entry, module, below=False) for entry in self.targets)


@dataclass(frozen=True)
class Section:
    """An object out of a config, read strictly; `path` is how messages name it."""

    values: Mapping[str, Any]
    path: str
    where: str

    def read(self, keys: Iterable[Key], ignored: Iterable[str]) -> dict[str, Any]:
        """The settings by the rules' names: every key consumed, aliases agreeing, values as the rules allow."""
        found: dict[str, Any] = {}
        known = set(ignored)
        for key in keys:
            known |= {key.name, *key.aliases}
            given = [name for name in (key.name, *key.aliases) if self.values.get(name) is not None]
            if not given and key.default is MANDATORY:
                raise CheckpointError(
                    f"{self.path}.{key.name} is missing", where=self.where, remedy="take the config from the original"
                )
            found[key.name] = self._value(key, given) if given else key.default
        for name, value in self.values.items():
            if name not in known and value is not None:
                raise CheckpointError(
                    f"unknown key {self.path}.{name} ({shown(value)}) could change what the weights mean",
                    where=self.where,
                    remedy=f"remove it if it does not, else {REMEDY}",
                )
        return found

    def _value(self, key: Key, given: list[str]) -> Any:
        first = self.values[given[0]]
        for other in given[1:]:
            if self.values[other] != first:
                said = f"{given[0]} {shown(first)} and {other} {shown(self.values[other])}"
                raise CheckpointError(
                    f"{self.path}: {said} contradict each other", where=self.where, remedy="keep the one that is right"
                )
        if key.kind is int and isinstance(first, float):  # 4.0 equals 4
            raise self.refuse(given[0], first, "it must be a whole number")
        return check(first, key, f"{self.path}.{given[0]}", self.where)

    def refuse(self, name: str, value: Any, supported: str) -> CheckpointError:
        """The error for a value that means something which is not read."""
        problem = f"{self.path}.{name} is {shown(value)}, which is not supported: {supported}"
        return CheckpointError(problem, where=self.where, remedy=REMEDY)
