"""Which weight is stored how: from the user's words to a format, or none, for every linear layer of a plan.

All linear layers of the blocks take the format asked for. What stands outside of them (the head, projections beside
the embedding) stays wide unless an exception names it: the last pattern that matches a path decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan
from allotrope.errors import UsageError
from allotrope.quant.formats import GROUPS, NAMES, Format, parse_format

WIDE = "wide"


@dataclass(frozen=True)
class Keep:
    """`PATTERN=FORMAT`: what `--keep` says."""

    pattern: str
    form: Format | None  # None: as wide as the compute dtype


@dataclass(frozen=True)
class Wanted:
    """What a build is asked for. Words that cannot be are errors at birth; what needs a plan, `policy` checks."""

    weights: str | None = None
    group_size: int | None = None
    asymmetric: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        form, exceptions = self.form, self.exceptions
        named = [form, *(exception.form for exception in exceptions)]
        for option, given in (("--group-size", self.group_size is not None), ("--asymmetric", self.asymmetric)):
            if given and not any(one is not None and one.name == "int4" for one in named) and form is None:
                raise UsageError(f"{option} says how weights are stored, and they stay wide", remedy="add --weights")

    @property
    def form(self) -> Format | None:
        """Of the blocks' linear layers."""
        if self.weights is None:
            return None
        return parse_format(self.weights, self.group_size, not self.asymmetric)

    @property
    def exceptions(self) -> tuple[Keep, ...]:
        """In the order given; the last that matches wins."""
        return tuple(self._exception(text) for text in self.keep)

    def _exception(self, text: str) -> Keep:
        pattern, equals, word = text.rpartition("=")
        if not equals or not pattern:
            raise UsageError(f"--keep is {text!r}", remedy="give PATTERN=FORMAT, as in 'blocks.0.*=wide'")
        if word == WIDE:
            return Keep(pattern, None)
        name, colon, size = word.partition(":")
        if name not in NAMES or (colon and size not in map(str, GROUPS)):
            words = f"{WIDE}, {', '.join(NAMES)}, or int4:64 for groups"
            raise UsageError(f"--keep is {text!r}; {word!r} is no format", remedy=f"formats are {words}")
        group = int(size) if colon else self.group_size if name == "int4" and self.weights == "int4" else None
        return Keep(pattern, parse_format(name, group, not (self.asymmetric and name == "int4")))


@dataclass(frozen=True)
class Policy:
    """For every linear layer by its path: its format, or None where it stays wide."""

    formats: Mapping[str, Format | None]

    @property
    def narrow(self) -> Mapping[str, Format]:
        """Those that do not stay wide."""
        return {path: form for path, form in self.formats.items() if form is not None}

    def to_json(self) -> dict[str, str]:
        """Format by path, in words."""
        return {path: WIDE if form is None else str(form) for path, form in self.formats.items()}


def policy(plan: Plan, wanted: Wanted) -> Policy:
    """The format of each linear layer; what cannot be is a UsageError that names the layer."""
    calls = list(linears(plan))
    formats: dict[str, Format | None] = {
        call.path: wanted.form if call.path.startswith("blocks.") else None for call in calls
    }
    for exception in wanted.exceptions:
        matched = [path for path in formats if fnmatchcase(path, exception.pattern)]
        if not matched:
            problem = f"--keep {exception.pattern!r} matches no linear layer"
            raise UsageError(problem, remedy=f"paths are like {_some(list(formats))}")
        formats |= dict.fromkeys(matched, exception.form)
    readers = [slot for call in plan.calls for slot in call.ins.values()]
    for call in calls:
        form = formats[call.path]
        if form is None:
            continue
        if readers.count(call.ins["weight"]) > 1:
            problem = "its weight is the embedding's, too (tied), and an embedding stays wide"
            raise UsageError(problem, where=call.path, remedy="name blocks.* alone")
        form.check_shape(plan.weights[plans.name(call.ins["weight"])].parts[0][1], call.path)
    return Policy(formats)


def linears(plan: Plan) -> Iterator[Call]:
    """The calls whose weights may be narrow."""
    return (call for call in plan.calls if call.op == "linear")


def _some(paths: list[str]) -> str:
    return ", ".join([*paths[:2], *paths[-1:]])
