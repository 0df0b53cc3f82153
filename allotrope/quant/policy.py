"""What is stored how: from the user's words to a format, or none, for every linear layer and cache of a plan.

All linear layers of the blocks take the format asked for. What stands outside of them (the head, projections beside
the embedding) stays wide unless an exception names it: the last pattern that matches a path decides. A head
that is tied to the embedding is looked up as it is stored. What a layer
keeps of keys and values has a path of its own, `blocks.3.attn.kv`, and formats of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import groupby

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan
from allotrope.errors import UsageError
from allotrope.ops.kv_rows import CODED, COMPUTE, NARROW
from allotrope.quant.formats import GROUPS, NAMES, STORES, Format, Store, parse_format
from allotrope.quant.held import Held

Form = Format | Store | None
"""None: as wide as the compute dtype."""
WIDE = "wide"
AS_STORED = "as stored"  # the method of a checkpoint that is quantised already
_ACTIVATIONS = ("int8", "fp8")
_MEET = {"int8": ("int8", "int4"), "fp8": ("fp8",)}  # activations → the weights whose codes they may meet
_GROUPED = ("int8", "int4")
_METHODS = ("auto", "nearest", "gptq", "awq")
_STORES = {store.name: store for store in STORES}


@dataclass(frozen=True)
class Exemption:
    """`PATTERN=FORMAT`, as `--keep` takes it. `word` is the format's, for what only a plan can tell."""

    pattern: str
    word: str
    form: Form

    @property
    def of_weights(self) -> bool:
        """Whether it may name linear layers, of which none is called so."""
        return not self.pattern.endswith(".kv")


@dataclass(frozen=True)
class Wanted:
    """What a build is asked for. Words that cannot be are errors at birth; what needs a plan, `policy` checks."""

    weights: str | None = None
    group_size: int | None = None
    asymmetric: bool = False
    activations: str | None = None
    method: str = "auto"
    kv: str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kept = (exemption.form for exemption in self.exemptions if exemption.of_weights)
        named = [one for one in (self.form, *kept) if one is not None]
        names = {one.name for one in named}
        if self.group_size is not None and not names & {*_GROUPED}:
            problem = f"--group-size is {self.group_size}, but no weights are to be int8 or int4"
            raise UsageError(problem, remedy="add --weights int4")
        if self.asymmetric and "int4" not in names:
            raise UsageError("--asymmetric is for int4, and no weights are to be int4", remedy="add --weights int4")
        _one_of("--method", self.method, _METHODS)
        if self.method != "auto" and not any(isinstance(one, Format) for one in named):
            problem = f"--method is {self.method}, but no weights are to be quantised"
            raise UsageError(problem, remedy=f"add --weights {', '.join(NAMES)}")
        self._check_activations()
        if self.method == "awq" and "fp8" in names:
            problem = "--method awq is for integers; fp8 has no even step that a scale would make finer"
            raise UsageError(problem, remedy="take --method gptq or nearest")

    def _check_activations(self) -> None:
        if self.activations is None:
            return
        _one_of("--activations", self.activations, _ACTIVATIONS)
        if self.weights not in _MEET[self.activations]:
            given = f"--weights is {self.weights}" if self.weights else "weights stay wide"
            met = " and ".join(_MEET[self.activations])
            problem = f"--activations is {self.activations}, and {given}; {self.activations} meets {met}"
            raise UsageError(problem, remedy=f"add --weights {' or '.join(_MEET[self.activations])}")
        if self.method == "awq":
            problem = "--method is awq; with activations in eight bits, inputs are scaled for their own sake"
            raise UsageError(problem, remedy="leave --method or --activations out")

    @property
    def form(self) -> Form:
        """Of the blocks' linear layers."""
        if self.weights is None:
            return None
        if self.weights in _STORES:
            return _STORES[self.weights]
        _one_of("--weights", self.weights, (*NAMES, *_STORES))
        return parse_format(self.weights, self.group_size, not (self.asymmetric and self.weights == "int4"))

    @property
    def exemptions(self) -> tuple[Exemption, ...]:
        """In the order given; the last that matches wins."""
        return tuple(self._exemption(text) for text in self.keep)

    def _exemption(self, text: str) -> Exemption:
        pattern, equals, word = text.rpartition("=")
        if not equals or not pattern:
            raise UsageError(f"--keep is {text!r}", remedy="give PATTERN=FORMAT, as in 'blocks.0.*=wide'")
        if word in (WIDE, "fp32"):
            return Exemption(pattern, word, None)
        if word in _STORES:
            return Exemption(pattern, word, _STORES[word])
        name, colon, size = word.partition(":")
        if name not in NAMES or (colon and size not in map(str, GROUPS)):
            words = f"{WIDE}, fp32, {', '.join(_STORES)}, {', '.join(NAMES)}, or as int4:64 with a group size"
            raise UsageError(f"--keep is {text!r}: {word!r} is no format", remedy=f"formats are {words}")
        # what --weights says of groups holds for its own format, and for exceptions where it has no groups itself
        alike = name == self.weights or (self.weights not in _GROUPED and name in _GROUPED)
        group = int(size) if colon else self.group_size if alike else None
        return Exemption(pattern, word, parse_format(name, group, not (self.asymmetric and name == "int4")))


def _one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError(f"{option} is {given!r}", remedy=f"choose {', '.join(known)}")


@dataclass(frozen=True)
class Policy:
    """For every linear layer by its path how it is stored; `method` is the way onto the formats.

    `kv` says it of every layer's keys and values; it is empty where nobody asked for narrow ones. `keys` says what
    happens to the mean of the narrow ones' keys.
    """

    formats: Mapping[str, Form]
    method: str = "nearest"
    activations: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)  # why a layer is an exception
    kv: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Store] = field(default_factory=dict)  # embeddings by path, in the checkpoint's own 16 bits

    @property
    def narrow(self) -> Mapping[str, Format]:
        """Those whose weights become codes."""
        return {path: form for path, form in self.formats.items() if isinstance(form, Format)}

    @property
    def stored(self) -> Mapping[str, Store]:
        """Those whose weights are kept in 16 bits."""
        return {path: form for path, form in self.formats.items() if isinstance(form, Store)}

    def product(self, path: str) -> str | None:
        """The format of a layer's activations; None where they stay wide, for want of codes that they could meet."""
        form = self.formats[path]
        meets = isinstance(form, Format) and self.activations is not None and form.name in _MEET[self.activations]
        return self.activations if meets else None

    def words(self, path: str) -> str:
        """How a layer's weights, and perhaps activations, or its keys and values are stored."""
        if path in self.tables:
            return f"{self.tables[path]}, as the checkpoint has it"
        if path in self.kv:
            if self.kv[path] == COMPUTE:
                return WIDE
            kept = self.kv[path] + (" per token and head" if self.kv[path] in CODED else "")
            return kept + (f", keys {self.keys[path]}" if path in self.keys else "")
        form, product = self.formats[path], self.product(path)
        return (WIDE if form is None else str(form)) + (f", activations {product} per token" if product else "")

    def lines(self) -> Iterator[str]:
        """The policy for people; blocks that are alike share a line."""

        def place(path: str) -> tuple[str, str]:
            block = re.match(r"blocks\.(\d+)\.", path)
            return (block[1], path[block.end() :]) if block else ("", path)

        blocks: dict[str, dict[str, str]] = {}
        for path in (*self.tables, *self.formats, *self.kv):
            block, rest = place(path)
            blocks.setdefault(block, {})[rest] = self.words(path)
        outside = blocks.pop("", {})
        for alike, run in groupby(blocks, key=lambda block: blocks[block]):
            numbers = list(run)
            name = f"blocks.{numbers[0]}" + (f" … {numbers[-1]}" if len(numbers) > 1 else "")
            yield f"{name}: {_shared(alike)}"
        if outside:
            yield f"outside of blocks: {_shared(outside)}"

    def to_json(self) -> dict[str, str]:
        """How each linear layer is stored, in words."""
        return {path: self.words(path) for path in self.formats}


def _shared(words: Mapping[str, str]) -> str:
    """`int4 …`, or `q, k int8 …; v wide`."""
    by_word: dict[str, list[str]] = {}
    for name, word in words.items():
        by_word.setdefault(word, []).append(name)
    if len(by_word) == 1:
        return next(iter(by_word))
    return "; ".join(f"{', '.join(names)} {word}" for word, names in by_word.items())


def policy(plan: Plan, wanted: Wanted, held: Held | None = None) -> Policy:
    """How each linear layer and cache is stored; what cannot be is a UsageError that names the layer.

    What is `held` in codes already stays as it is, or becomes wide.
    """
    calls = list(linears(plan))
    _check_store(wanted.weights or WIDE, "--weights", plan.dtype)
    # beside codes the rest stays as it is, unless an exemption names it
    inside = None if wanted.weights == plan.dtype or held else wanted.form
    reasons: dict[str, str] = {}
    usual = COMPUTE if wanted.kv is None or wanted.kv == plan.dtype else wanted.kv
    caches = dict.fromkeys(map(plans.kv_path, range(plan.cache.layers)), usual)
    formats: dict[str, Form] = {call.path: inside if call.path.startswith("blocks.") else None for call in calls}
    formats |= held.formats if held else {}
    named: dict[str, Form] = {}
    for exemption in wanted.exemptions:
        _check_store(exemption.word, f"--keep {exemption.pattern!r}", plan.dtype)
        matched = [path for path in formats if fnmatchcase(path, exemption.pattern)]
        kept = _kept(exemption, caches, wanted.kv, plan.dtype, alone=not matched)
        if not matched and not kept:
            problem = f"--keep {exemption.pattern!r} matches no linear layer" + (" and no cache" if wanted.kv else "")
            raise UsageError(problem, remedy=f"layers are {_some([*formats, *(caches if wanted.kv else ())])}")
        reasons |= dict.fromkeys((*matched, *kept), f"--keep '{exemption.pattern}={exemption.word}'")
        named |= dict.fromkeys(matched, None if exemption.word == plan.dtype else exemption.form)
        caches |= kept
    formats |= named
    kv = caches if wanted.kv else {}
    if held:
        _check_held(held, wanted, named)
    for call in calls:
        form = formats[call.path]
        if isinstance(form, Format):
            shape = plan.weights[plans.name(call.ins["weight"])].parts[0][1]
            form.check_shape(shape, call.path)
            if form.group == shape[1]:  # one group to a row is a scale per row, and stored as that
                formats[call.path] = replace(form, group=None)
    if held:
        return Policy(formats, AS_STORED, wanted.activations or held.activations, reasons, kv)
    return Policy(formats, _method(wanted, formats), wanted.activations, reasons, kv)


def with_tables(chosen: Policy, plan: Plan, stored: Callable[[str], str]) -> Policy:
    """The policy in which embeddings that nothing else reads keep the checkpoint's 16 bits, which loses nothing.

    Only beside weights that are narrow themselves: else all are as wide as is computed. `stored`: a slot's dtype there.
    """
    if plan.dtype != "fp32" or not (chosen.narrow or chosen.stored):
        return chosen
    heads = {call.ins["weight"] for call in linears(plan)}
    looked_up = {
        call.path: stored(plans.name(call.ins["table"]))
        for call in plan.calls
        if call.op == "embed" and call.ins["table"] not in heads
    }
    return replace(chosen, tables={path: _STORES[dtype] for path, dtype in looked_up.items() if dtype in _STORES})


def _kept(
    exemption: Exemption, caches: Mapping[str, str], asked: str | None, dtype: str, *, alone: bool
) -> dict[str, str]:
    """What an exemption says of keys and values; `alone` if it speaks of nothing else, and so must make sense here."""
    matched = [path for path in caches if fnmatchcase(path, exemption.pattern)]
    if asked is None:
        if alone and matched:
            problem = f"--keep {exemption.pattern!r} names keys and values, and all of them stay wide"
            raise UsageError(problem, remedy=f"add --kv {' or '.join(NARROW)}")
        return {}
    form = COMPUTE if exemption.word in (WIDE, dtype) else exemption.word
    if form in (COMPUTE, *NARROW):
        return dict.fromkeys(matched, form)
    if alone and matched:
        problem = f"--keep {exemption.pattern!r} names keys and values, which cannot be {exemption.word}"
        raise UsageError(problem, remedy=f"give {', '.join((WIDE, *NARROW))}")
    return {}


def _method(wanted: Wanted, formats: Mapping[str, Form]) -> str:
    """The way onto the formats. GPTQ where calibration pays: for four bits, and beside activations, which need it.

    What stands outside of the blocks is rounded to nearest, whatever the method.
    """
    inside = [form for path, form in formats.items() if path.startswith("blocks.") and isinstance(form, Format)]
    if wanted.method in ("gptq", "awq") and not inside:
        problem = f"--method is {wanted.method}, but no layer of the blocks is to be quantised, and others are rounded"
        raise UsageError(f"{problem} to nearest", remedy="leave it out, or add --weights")
    if wanted.method != "auto":
        return wanted.method
    four = any(form.name == "int4" for form in inside)
    return "gptq" if four or wanted.activations is not None else "nearest"


def _check_held(held: Held, wanted: Wanted, named: Mapping[str, Form]) -> None:
    """An error unless each weight in codes keeps its own, or is made wide."""
    if wanted.method != "auto":
        problem = f"--method is {wanted.method}, but the weights are quantised already"
        raise UsageError(problem, remedy="leave it out, or give the original checkpoint")
    for path, reason in held.reasons.items():
        if path not in named or named[path] is not None:
            raise UsageError(reason, where=path, remedy="--keep 'blocks.*=wide' runs them wide, which is exact")
    for path, form in held.formats.items():
        other = "" if named.get(path) in (None, form) else str(named[path])
        asked = wanted.form
        if isinstance(asked, Format):
            group = wanted.group_size not in (None, form.group)
            if asked.name != form.name or group or (wanted.asymmetric and form.symmetric):
                other = f"--weights {asked}"
        elif asked is not None:
            other = f"--weights {asked}"
        if other:
            problem = f"its weight is stored as {form} already, and {other} would round it a second time"
            raise UsageError(problem, where=path, remedy="leave it out, or give the original checkpoint")


def linears(plan: Plan) -> Iterator[Call]:
    """The calls whose weights may be narrow."""
    return (call for call in plan.calls if call.op == "linear")


def _check_store(word: str, option: str, dtype: str) -> None:
    """A float store is the compute dtype, or 16 bits of fp32: anything else would round once more, or widen in vain."""
    if word == dtype or word not in ("fp32", *_STORES) or (dtype == "fp32" and word in _STORES):
        return
    problem = f"{option} is {word}, but the engine computes in {dtype}"
    raise UsageError(problem, remedy=f"add --dtype {'fp32' if word == 'fp32' else f'{word}, or --dtype fp32'}")


def _some(paths: list[str]) -> str:
    return ", ".join([*paths[:2], "…", *paths[-2:]] if len(paths) > 4 else paths)
