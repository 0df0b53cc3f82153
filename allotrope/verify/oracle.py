"""The oracle: the original's own code in transformers, in any precision, walked and tapped.

Weights come tensor by tensor from the checkpoint's own names, never through this project's slot
transforms; no pickle is opened and no remote code is run. Three passes exist, all through `walk`:

    plain      what the original computes
    stepped    each value rounded to a dtype where it is probed, before the original goes on with it
    replaced   each probed value put in place of what the original computed there

Running the truth stepped and a copy in the engine's dtype replaced gives each part the same input, so
the difference of their outputs is what that part injects by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import DynamicCache
from transformers.initialization import no_init_weights

from allotrope.errors import CheckpointError

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LOGITS = "logits"

Values = dict[str, torch.Tensor]
Loader = Callable[[], torch.Tensor]
Pass = Callable[[torch.Tensor], torch.Tensor]
Round = Callable[[int, torch.Tensor], torch.Tensor] | None
"""What a layer's cache in few bits gives back of keys or values `[batch, heads, length, head_dim]`."""


@dataclass(frozen=True)
class Probe:
    """A place in the original: what goes into a module (its first argument), or what comes out.

    Or the keys or the values that a layer's attention reads, of all heads side by side; `module` is then the layer's
    number.
    """

    module: str
    side: str  # "in", "out", "key" or "value"


_SUSPENDED = ContextVar("suspended", default=False)


@contextmanager
def as_written() -> Iterator[None]:
    """Inside an oracle of fp64: code that says fp32 means it, such as what defines a code to the bit."""
    token = _SUSPENDED.set(True)
    try:
        yield
    finally:
        _SUSPENDED.reset(token)


class _Double(TorchFunctionMode):
    """Every fp32 that the original's code asks for becomes fp64.

    transformers computes softmax, RMS norms and rotary angles in fp32 whatever the model's dtype is, so a
    model merely converted to fp64 would share those roundings with the model that it is to judge.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _SUSPENDED.get():
            return func(*args, **(kwargs or {}))

        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*(wide(value) for value in args), **{key: wide(value) for key, value in (kwargs or {}).items()})


class Oracle:
    """One original in one precision on one device.

    `loaders` gives each parameter of `model_class`, by transformers' name. With `resident` False, a
    block's weights are loaded when the block runs and dropped after it: memory for one block suffices.
    """

    def __init__(
        self,
        model_class: type[Any],
        config: Any,
        loaders: Mapping[str, Loader],
        precision: str,
        device: str,
        *,
        layers: int,
        resident: bool = True,
    ) -> None:
        self.precision, self.dtype, self.device = precision, DTYPES[precision], device
        self._loaders, self._resident = loaders, resident
        self.round_kv: Round = None  # what is done to keys and values before attention reads them
        self.by_longest = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
        with self._precise():
            self.model = _skeleton(model_class, config, self.dtype)
            self.renew()
        self._sources = _resolve(self.model, loaders)
        self.blocks = _block_names(self.model, layers)
        if resident:
            self._fill(self.model, "")
        else:
            self._fill_on_demand()

    def module(self, name: str) -> nn.Module:
        """A module of the original by its dotted name."""
        found: nn.Module = self.model.get_submodule(name)
        return found

    def loaders(self) -> dict[str, Loader] | None:
        """What gives this oracle's own parameters, for another one in a coarser precision; None if it holds none."""
        if not self._resident:
            return None
        return {source: partial(self.model.get_parameter, source) for source in set(self._sources.values())}

    def set(self, values: Mapping[str, torch.Tensor]) -> None:
        """Other values for some parameters, by the names that they are loaded under; one not held needs none."""
        if not self._resident:
            return
        for path, source in self._sources.items():
            if source in values:
                self.model.get_parameter(path).data.copy_(values[source])

    def parameter(self, name: str) -> torch.Tensor | None:
        """A parameter as the checkpoint has it; None if the original has none of that name."""
        source = self._sources.get(name)
        return None if source is None else self._loaders[source]()

    def walk(
        self,
        prompts: Sequence[Sequence[int]],
        probes: Mapping[str, Probe],
        *,
        given: Mapping[str, torch.Tensor] | None = None,
        round_to: torch.dtype | None = None,
    ) -> Values:
        """Values at `probes` and `LOGITS`, rows of all prompts one after the other, on the oracle's device.

        Prompts lie side by side, padded on the right: under a causal mask nothing before the padding can
        see it. (A rotary base that follows the longest could; then each prompt goes by itself.) `given`
        replaces what it names; `round_to` rounds what is probed. What is recorded is the original's own
        value, before either.
        """
        if self.by_longest and len(prompts) > 1:
            return self._one_by_one(prompts, probes, given, round_to)
        longest = max(len(ids) for ids in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        real = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            real[row, : len(prompt)] = True
        recorder = _Recorder(real.to(self.device), given or {}, round_to)
        with torch.no_grad(), self._precise():
            self.renew()
            taps: dict[tuple[int, str], Pass] = {}
            handles = list[Any]()
            for name, probe in probes.items():
                if probe.side in SIDES_OF_KV:
                    taps[int(probe.module), probe.side] = partial(recorder.heads, name)
                else:
                    handles.append(recorder.attach(self.module(probe.module), name, probe.side))
            rounds = self.round_kv
            cache = _cache(self.model.config, rounds, taps) if taps or rounds is not None else None
            try:
                logits = self.model(
                    input_ids=ids.to(self.device), past_key_values=cache, use_cache=cache is not None
                ).logits
            finally:
                for handle in handles:
                    handle.remove()
        return recorder.values | {LOGITS: recorder.rows(logits)}

    def _one_by_one(
        self,
        prompts: Sequence[Sequence[int]],
        probes: Mapping[str, Probe],
        given: Mapping[str, torch.Tensor] | None,
        round_to: torch.dtype | None,
    ) -> Values:
        found, start = list[Values](), 0
        for prompt in prompts:
            part = {name: value[start : start + len(prompt)] for name, value in (given or {}).items()}
            found.append(self.walk([prompt], probes, given=part, round_to=round_to))
            start += len(prompt)
        return {name: torch.cat([values[name] for values in found], dim=-2) for name in found[0]}

    def follow(self, prompt: Sequence[int], text: Sequence[int]) -> torch.Tensor:
        """Logits `[len(prompt) + len(text), vocab]`, the text fed one token at a time through the cache.

        For positions whose meaning depends on what has been seen so far (dynamic rotary scaling).
        """
        with torch.no_grad(), self._precise():
            self.renew()
            ids = torch.tensor([list(prompt)], device=self.device)
            cache = _cache(self.model.config, self.round_kv, {})
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            logits = [out.logits[0]]
            for token in text:
                ids = torch.tensor([[token]], device=self.device)
                out = self.model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
                logits.append(out.logits[0])
        return torch.cat(logits)

    @contextmanager
    def _precise(self) -> Iterator[None]:
        if self.precision == "fp64":
            with _Double():
                yield
        else:
            yield

    @staticmethod
    def in_double(module: Any) -> Any:
        """A module that follows from its config alone, made anew in fp64 whatever this oracle's precision.

        In fp32 the blend of llama3's frequencies loses five bits where it sets in; that is no other model.
        """
        with _Double(), torch.device("cpu"):
            return type(module)(module.config)

    def renew(self) -> None:
        """Make what is computed from the config alone (rotary frequencies) anew: dynamic scaling leaves it changed."""
        for owner in list(self.model.modules()):
            for name, child in list(owner.named_children()):
                if any(True for _ in child.buffers(recurse=False)) and hasattr(child, "config"):
                    with torch.device(self.device):
                        setattr(owner, name, type(child)(child.config))
        left = [name for name, buffer in self.model.named_buffers() if buffer.is_meta]
        if left:
            raise CheckpointError(f"the original's buffer {left[0]} cannot be computed from its config")

    def _fill(self, unit: nn.Module, prefix: str) -> None:
        """Load every parameter of `unit`; tied ones share one tensor."""
        loaded: dict[str, nn.Parameter] = {}
        for path, _ in list(unit.named_parameters(remove_duplicate=False)):
            owner_path, _, leaf = path.rpartition(".")
            source = self._sources[f"{prefix}{path}"]
            if source not in loaded:
                value = self._loaders[source]().to(self.device, self.dtype)
                owned = unit.get_parameter(path)
                if value.shape != owned.shape:
                    raise CheckpointError(
                        f"shape {list(value.shape)} where the original has {list(owned.shape)}", where=source
                    )
                loaded[source] = nn.Parameter(value.contiguous(), requires_grad=False)
            unit.get_submodule(owner_path)._parameters[leaf] = loaded[source]

    def _fill_on_demand(self) -> None:
        """Load a unit's weights before it runs and drop them after. Units: blocks, and what stands outside them."""
        inside = tuple(f"{name}." for name in self.blocks)
        for name, module in self.model.named_modules():
            alone = any(True for _ in module.parameters(recurse=False)) and not name.startswith(inside)
            if name in self.blocks or alone:
                prefix = f"{name}."
                module.register_forward_pre_hook(lambda unit, _, prefix=prefix: self._fill(unit, prefix))
                module.register_forward_hook(lambda unit, *_: _empty(unit))


class _Recorder:
    """Takes values at probes and, if asked, puts others in their place."""

    def __init__(self, real: torch.Tensor, given: Mapping[str, torch.Tensor], round_to: torch.dtype | None) -> None:
        self.values: Values = {}
        self._real, self._given, self._round_to = real, given, round_to

    def rows(self, padded: torch.Tensor) -> torch.Tensor:
        """The real rows of `[batch, longest, …]`, as `[rows, width]`."""
        batch, longest = self._real.shape
        if padded.shape[0] == 1 and padded.dim() == 3:  # the same for every prompt: rotary tables
            padded = padded.expand(batch, -1, -1)
        return padded.reshape(batch, longest, -1)[self._real].detach()

    def attach(self, module: nn.Module, name: str, side: str) -> Any:
        if side == "in":

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if args:
                    return (self._pass(name, args[0]), *args[1:]), kwargs
                first = next(iter(kwargs))
                return args, {**kwargs, first: self._pass(name, kwargs[first])}

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, __: Any, out: Any) -> Any:
            if isinstance(out, tuple) and name.endswith(ROTATION):  # cosines and sines, never replaced
                self.values[name] = torch.stack([self.rows(part) for part in out])
                return None
            if isinstance(out, tuple):
                return (self._pass(name, out[0]), *out[1:])
            return self._pass(name, out)

        return module.register_forward_hook(after)

    def heads(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Keys or values `[batch, heads, length, head_dim]`, recorded as rows."""
        lying = value.transpose(1, 2)
        passed = self._pass(name, lying.reshape(*self._real.shape, -1))
        return passed.reshape(lying.shape).transpose(1, 2)

    def _pass(self, name: str, value: torch.Tensor) -> torch.Tensor:
        self.values[name] = self.rows(value)
        if name in self._given:
            replaced = value.clone().reshape(*self._real.shape, -1)
            replaced[self._real] = self._given[name].to(value.device, value.dtype)
            return replaced.reshape(value.shape)
        if self._round_to is not None:
            return value.to(self._round_to).to(value.dtype)
        return value


def _cache(config: Any, rounds: Round, taps: Mapping[tuple[int, str], Pass]) -> Any:
    """transformers' cache, where attention finds its keys and values: tapped there, and rounded as an engine's are."""
    cache = DynamicCache(config=config)
    plain = cache.update

    def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        found = []
        for side, states in zip(SIDES_OF_KV, (keys, values), strict=True):
            tap = taps.get((layer, side))
            seen = states if tap is None else tap(states)
            found.append(seen if rounds is None else rounds(layer, seen))
        return plain(*found, layer, *args, **kwargs)

    cache.update = update
    return cache


SIDES_OF_KV = ("key", "value")
ROTATION = "rotation"
"""The name of a probe at the original's rotary embedding: its cosines and sines, stacked."""


def _skeleton(model_class: type[Any], config: Any, dtype: torch.dtype) -> Any:
    """The model without memory."""
    config._attn_implementation = "eager"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device("meta"):
            model = model_class(config).eval()
            model.tie_weights()
    finally:
        torch.set_default_dtype(before)
    return model


def _resolve(model: Any, loaders: Mapping[str, Loader]) -> dict[str, str]:
    """For each parameter the name it is loaded under; tied ones share it. Nothing missing, nothing left over."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    sources, used = dict[str, str](), set[str]()
    for names in groups.values():
        present = [name for name in names if name in loaders]
        if not present:
            raise CheckpointError(f"the checkpoint has no weight for the original's {names[0]}")
        sources |= dict.fromkeys(names, present[0])
        used |= set(present)
    left = sorted(set(loaders) - used)
    if left:
        raise CheckpointError(f"the original has no place for the checkpoint's {left[0]}")
    return sources


def _block_names(model: Any, layers: int) -> tuple[str, ...]:
    lists = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if len(lists) != 1:
        raise CheckpointError(f"the original has {len(lists)} lists of {layers} blocks, where one was expected")
    return tuple(f"{lists[0]}.{i}" for i in range(layers))


def _empty(unit: nn.Module) -> None:
    for module in unit.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[leaf] = nn.Parameter(parameter.to("meta"), requires_grad=False)
