"""What a build is asked for: one immutable record, checked at birth and kept in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike, fspath
from typing import Any

from allotrope import native
from allotrope.build.fuse import FUSIONS
from allotrope.errors import UsageError
from allotrope.ops.kv_rows import NARROW

DTYPES = ("auto", "fp32", "fp16", "bf16")
WEIGHTS = ("int8", "int4", "fp8", "fp16", "bf16")
ACTIVATIONS = ("int8", "fp8")
KV = NARROW
METHODS = ("auto", "nearest", "gptq", "awq")
TUNE = ("full", "fast", "off")
PLANS = ("best", "reference")
EXECUTORS = ("auto", "native", "eager", "graph")

_MOST = {"max_batch": 65_536, "max_len": 2**24, "threads": 1024, "calibration_tokens": 2**30, "seed": 2**63 - 1}


@dataclass(frozen=True)
class BuildOptions:
    """Options of `allotrope build`. `max_len` None is what the model allows; `threads` None is all cores."""

    device: str = "auto"
    dtype: str = "auto"  # auto: fp32 on a CPU; on a GPU the checkpoint's own, if it has 16 bits
    tune: str = "fast"
    without: tuple[str, ...] = ()  # fusions and tactics that may not be used; an op: its reference is used
    plan: str = "best"
    plus: tuple[str, ...] = ()  # fusions, ops and tactics that the reference plan gets all the same
    allow_batch_variance: bool = False
    max_batch: int = 64
    max_len: int | None = None
    threads: int | None = None
    allow_pickle: bool = False
    allow_nan: bool = False
    executor: str = "auto"  # what the engine is to run on: graph on a GPU; on a CPU native where there is a core
    weights: str | None = None  # format of the blocks' linear layers; None: the compute dtype
    group_size: int | None = None  # weights that share a scale; None: int4's 32, otherwise a row
    asymmetric: bool = False  # int4 with zeros
    activations: str | None = None  # format of what these layers read, a scale per token
    method: str = "auto"  # the way onto the formats
    kv: str | None = None  # format of the cached keys and values, a scale per token and head
    max_kl: float | None = None  # the most sensitive layers stay wide until the model's KL is no larger
    calibration: str | None = None  # a text file; None: the bundled text
    calibration_tokens: int | None = None
    keep: tuple[str, ...] = ()  # PATTERN=FORMAT, the last that matches a path decides
    seed: int = 0  # of random weights and of the inputs that tactics are tried on

    def __post_init__(self) -> None:
        for name, choices in (("dtype", DTYPES), ("tune", TUNE), ("plan", PLANS), ("executor", EXECUTORS)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}", where="build", remedy=f"choose {', '.join(choices)}"
                )
        if self.kv is not None and self.kv not in KV:
            raise UsageError(f"kv is {self.kv!r}", where="build", remedy=f"choose {', '.join(KV)}, or leave it out")
        for name, most in _MOST.items():
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if value is not None and (type(value) is not int or not least <= value <= most):
                raise UsageError(
                    f"{name} is {value!r}", where="build", remedy=f"give a whole number, {least} to {most}"
                )
        for name in ("weights", "activations", "method", "calibration"):
            if not isinstance(value := getattr(self, name), str | None):
                raise UsageError(f"{name} is {value!r}", where="build", remedy="give a word")
        if self.plus and self.plan != "reference":
            problem = f"plus is {','.join(self.plus)}, and the plan is not the reference, which parts are added to"
            raise UsageError(problem, where="build", remedy="add --plan reference, or leave --plus out")
        self._check_left_out()
        if not all(isinstance(text, str) for text in self.keep):
            remedy = "give PATTERN=FORMAT, or a list of them"
            raise UsageError(f"keep is {list(self.keep)!r}", where="build", remedy=remedy)
        if not isinstance(self.group_size, int | None):
            raise UsageError(f"group_size is {self.group_size!r}", where="build", remedy="give 32, 64 or 128")
        if self.max_kl is not None and not (type(self.max_kl) in (int, float) and 0 < self.max_kl < float("inf")):
            raise UsageError(f"max_kl is {self.max_kl!r}", where="build", remedy="give a number above 0, as 0.005")
        if self.wanted:
            from allotrope.quant.policy import Wanted

            Wanted(**self.wanted)

    def _check_left_out(self) -> None:
        """What would not be done anyhow cannot be left out."""
        for part, name, what in (("smooth", "activations", "activations"), ("centre", "kv", "keys and values")):
            if part in self.without and getattr(self, name) is None:
                problem = f"without is {part}, which serves narrow {what} alone, and {what} stay wide"
                raise UsageError(problem, where="build", remedy=f"add --{name} int8, or leave it out")

    @property
    def wanted(self) -> dict[str, Any]:
        """What is asked of weights and caches, as `quant.policy.Wanted` takes it; empty if nothing is."""
        names = ("weights", "group_size", "asymmetric", "activations", "method", "kv", "keep")
        usual = (None, "auto", ())
        given = {name: value for name in names if (value := getattr(self, name)) not in usual}
        return {name: value for name, value in given.items() if value is not False}

    @staticmethod
    def of(**given: Any) -> BuildOptions:
        """Options by name; an unknown name is an error that lists the known ones."""
        unknown = sorted(set(given) - set(BuildOptions.__dataclass_fields__))
        if unknown:
            known = ", ".join(BuildOptions.__dataclass_fields__)
            raise UsageError(f"build has no option {unknown[0]!r}", remedy=f"options are {known}")
        for name in ("without", "plus"):
            if name in given:
                parts = given[name]
                given[name] = tuple(parts.split(",") if isinstance(parts, str) else parts)
        if "keep" in given:
            kept = given["keep"]
            given["keep"] = tuple(kept) if isinstance(kept, list | tuple) else (kept,)
        if isinstance(given.get("calibration"), PathLike):
            given["calibration"] = fspath(given["calibration"])
        return BuildOptions(**given)

    def settled(self, kind: str) -> BuildOptions:
        """With what follows from the kind of device."""
        if self.executor != "auto":
            return self
        on_cpu = "native" if native.why_not() is None else "eager"
        return replace(self, executor="graph" if kind == "cuda" else on_cpu)

    def to_json(self) -> Mapping[str, Any]:
        """As kept in the engine."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def compute_dtype(asked: str, stored: str, kind: str) -> str:
    """The dtype to compute in on a kind of device, given what a checkpoint's weights are stored in."""
    if asked != "auto":
        return asked
    return stored if kind == "cuda" and stored in ("fp16", "bf16") else "fp32"


def check_parts(without: tuple[str, ...], plus: tuple[str, ...] = ()) -> None:
    """A UsageError that lists what there is, unless every part names a fusion, an op or a tactic."""
    from allotrope.ops import registry

    tactics = {(op, tactic.name) for op in registry.names() for tactic in registry.tactics(op)}
    known = {name for _, name in tactics} | {f"{op}/{name}" for op, name in tactics} | {*registry.names()}
    known |= {fusion.name for fusion in FUSIONS}
    for parts, how in ((without, "without"), (plus, "with")):
        unknown = [part for part in parts if part not in (known | {"smooth", "centre"} if parts is without else known)]
        if unknown:
            listed = [fusion.name for fusion in FUSIONS] + sorted(f"{op}/{name}" for op, name in tactics)
            raise UsageError(f"no part {unknown[0]!r} to build {how}", remedy=f"parts are {', '.join(listed)}")
