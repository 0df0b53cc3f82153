"""The builder: from a checkpoint to an engine folder. The only place that decides, and it writes down why."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from allotrope import __version__, native, settings, tokenizers
from allotrope.artifact import layout, manifest, results
from allotrope.artifact.manifest import Manifest
from allotrope.artifact.plan import Plan
from allotrope.artifact.problems import Load, problem
from allotrope.artifact.writer import EngineWriter, writing
from allotrope.build import compiling, fetching, select
from allotrope.build.centring import centring, decided
from allotrope.build.check_whole import check_whole
from allotrope.build.memory import Peak
from allotrope.build.narrowing import Narrowing
from allotrope.build.options import BuildOptions, check_parts, compute_dtype
from allotrope.build.pieces import Packer, check_values, drop_zero_biases
from allotrope.build.select import Selection
from allotrope.build.tasks import tasks
from allotrope.build.timings import Timings
from allotrope.build.tune import Checked, Tuner
from allotrope.errors import TokenizerError, UsageError
from allotrope.hw import peaks
from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint, versions
from allotrope.models.checkpoint import RANDOM
from allotrope.models.lower import lower
from allotrope.models.model import Model, open_model
from allotrope.ops import kernels, registry
from allotrope.ops.kv_rows import COMPUTE
from allotrope.ops.native import NativeTactic
from allotrope.quant.cache import with_cache
from allotrope.quant.held import held
from allotrope.quant.policy import Policy, Wanted, policy, with_tables
from allotrope.runtime.buffers import page_bytes
from allotrope.runtime.eager import settle_torch
from allotrope.runtime.program import capturable_rows


class Advances(Protocol):
    """What shows progress."""

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        ...


class _Silent:
    def advance(self, n: int = 1) -> None:
        """Nobody looks."""


Said = Callable[[str], None]
Progress = Callable[[int, str], AbstractContextManager[Advances]]
"""`progress(total, label)`, as a context that is advanced."""


def silent(total: int, label: str) -> AbstractContextManager[Advances]:
    """Shows nothing."""
    return nullcontext(_Silent())


@dataclass(frozen=True)
class Built:
    """What a build gives back; everything but the memory is in the engine, too."""

    path: Path
    manifest: Manifest
    seconds: float
    peak_memory_bytes: int


def build(
    ref: str,
    out: Path | str,
    options: BuildOptions,
    progress: Progress = silent,
    said: Said = lambda line: None,
    checked: Checked | None = None,
) -> Built:
    """Build the checkpoint `ref` into the folder `out`; `said` hears what is decided before the work begins.

    `checked` are the numerics that earlier builds with the same seed and device have checked; this one's are added.
    """
    began, peak = time.perf_counter(), Peak()
    check_parts(options.without, options.plus)
    model = open_model(seeded(ref, options), allow_pickle=options.allow_pickle)
    model.check_zero()
    model.check_tied()
    kept = tokenizer_files(model)
    device = detect(options.device)
    asked, options = options.executor, options.settled(device.kind)
    with writing(Path(out)) as writer, _threads(options) as threads:
        settle_torch(None)
        dtype = compute_dtype(options.dtype, model.dtypes[0], device.kind)
        with progress(len(model.sources), "reading weights") as shown:
            check_values(model, dtype, options.allow_nan, shown.advance)
        lowered, zero = drop_zero_biases(model, lower(model.recipe, dtype))
        limits = _limits(lowered, options)
        chosen = policy(lowered, Wanted(**options.wanted), held(model, lowered))
        chosen = with_tables(chosen, lowered, model.dtype_of)
        lowered = with_cache(lowered, tuple(chosen.kv.values()) or COMPUTE)
        chosen = decided(chosen, lowered, options, bool(kept))
        if options.wanted or chosen.narrow:
            for line in chosen.lines():
                said(line)
        narrowing = Narrowing(options, device, writer.folder, progress)
        narrowed = narrowing(model, lowered, chosen, bool(kept))
        narrowed, keys = centring(model, lowered, narrowed, chosen, options, device, progress)
        lowered = narrowed.plan
        with kernels.made_by(compiling.make):
            found = {} if checked is None else checked
            selection, tuned = _select(lowered, options, device, threads, progress, found)
        if asked == "auto" and device.kind == "cpu" and (none := native.why_not()):
            selection = replace(selection, not_native=none)
        if asked == "native" and selection.not_native:
            problem = f"executor is 'native', but the native core cannot compute it all: {selection.not_native}"
            raise UsageError(problem, where="build", remedy="leave the executor at auto")
        described = _describe(model, selection, options, device, limits)
        _write(writer, Packer(model, selection.plan, narrowed), progress)
        narrowing.packed()
        writer.tokenizer(kept)
        with progress(1, "checking the whole model"):
            whole = check_whole(writer.preview(described), lowered, device, options)
        fetched = _fetched(selection, device, options, progress)
        evidence = {
            **described.evidence,
            "quantisation": narrowed.to_json(),
            "kv": {**_kv(selection.plan, chosen), **keys},
            "dropped_zero_biases": zero,
            "notes": list(model.notes),
            "tuning": {"effort": options.tune, "threads": threads, **tuned, "fetch": fetched},
            "checks": {"whole_model": whole},
            "versions": versions(),
            "date": results.now(),
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": peak.bytes(),
        }
        chosen_fetch = {} if fetched is None else {"fetch": fetched["choice"]}
        described = writer.finish(replace(described, tuned=chosen_fetch, evidence=evidence))
    narrowing.finish()
    return Built(Path(out), described, time.perf_counter() - began, peak.bytes())


def _fetched(selection: Selection, device: Device, options: BuildOptions, progress: Progress) -> dict[str, Any] | None:
    """Into which cache the native core should fetch weights ahead, and what says so."""
    if selection.not_native or options.executor != "native" or options.tune == "off":
        return None
    with progress(1, "timing how weights are fetched"):
        return fetching.timed(selection.plan, device, options)


def seeded(ref: str, options: BuildOptions) -> str:
    """`random:SHAPE` with the seed asked for, unless it names one itself."""
    plain = ref.startswith(RANDOM) and "@" not in ref and options.seed
    return f"{ref}@{options.seed}" if plain else ref


def _limits(plan: Plan, options: BuildOptions) -> Mapping[str, int]:
    if options.max_len is not None and options.max_len > plan.max_len:
        raise UsageError(f"max_len is {options.max_len}, the model's positions end at {plan.max_len}", where="build")
    return {"max_batch": options.max_batch, "max_len": options.max_len or plan.max_len}


@contextmanager
def _threads(options: BuildOptions) -> Iterator[int]:
    """Tune and check with as many threads as the engine will use.

    Untuned, there is nothing but small checks: one thread does them in a second, and does not wait for
    others, which on a busy machine takes ten times as long.
    """
    before = torch.get_num_threads(), native.threads()
    wanted = 1 if options.tune == "off" else options.threads or settings.threads()
    native.set_threads(wanted)
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before[0])
        native.set_threads(before[1])


def _select(
    plan: Plan, options: BuildOptions, device: Device, threads: int, progress: Progress, checked: Checked
) -> tuple[Selection, dict[str, Any]]:
    if options.plan == "reference" and not options.plus:
        return select.reference(plan), {"timed": 0, "reused": 0}
    todo = sum(len(task.problems) for task in tasks(plan, options.tune, options.executor == "graph"))
    label = "checking tactics" if options.tune == "off" else "checking and timing tactics"
    with progress(todo, label) as shown:
        tuner = Tuner(device, options, Timings.load(device, threads), shown.advance, checked=checked)
        trials = select.by_parts(tuner.trials, options)
        selection = select.select(plan, options, trials, tuner.prove, peaks.load(device), device.kind)
        kept = tuner.timings.save()
    return selection, {"timed": tuner.timed, "reused": tuner.reused, "kept": kept}


def _describe(
    model: Model, selection: Selection, options: BuildOptions, device: Device, limits: Mapping[str, int]
) -> Manifest:
    used = {(call.op, name) for call in selection.plan.calls for _, name in call.tactics}
    kernels_of_core = any(isinstance(registry.tactic(op, name), NativeTactic) for op, name in used)
    facts = fingerprint(device, native.find().isa if kernels_of_core else None)
    return Manifest(
        schema=manifest.SCHEMA,
        version=__version__,
        family=model.family.name,
        plan=selection.plan,
        config=model.config,
        generation=model.generation,
        source={
            "path": model.checkpoint.origin,
            "digest": model.checkpoint.digest(),
            "random": model.checkpoint.origin.startswith(RANDOM),
            "bytes": model.checkpoint.nbytes,
        },
        dtype=selection.plan.dtype,
        device=asdict(device),
        fingerprint={"hard": facts.hard, "soft": facts.soft},
        tactics={f"{op}/{name}": registry.tactic(op, name).version for op, name in sorted(used)},
        limits=limits,
        options=options.to_json(),
        tuned={},
        evidence={
            "choices": selection.choices,
            "fusions": selection.fusions,
            "executor": _executor(selection, options),
            "batch_variance": {"allowed": options.allow_batch_variance, "calls_without_row_class": selection.varying},
        },
        files={},
        kernels={key: kernels.known(key).to_json() for key in sorted(set(_kernel_keys(selection.plan)))},
    )


def _kernel_keys(plan: Plan) -> Iterator[str]:
    """The names of the kernels that the plan's tactics bring."""
    for call in plan.calls:
        for _, name in call.tactics:
            named = getattr(registry.tactic(call.op, name), "key", None)
            if named is not None:
                yield named(problem(plan, call, Load(1)))


def _executor(selection: Selection, options: BuildOptions) -> dict[str, Any]:
    """What the engine is built to run on, and up to how many decoding rows a graph holds all that it calls."""
    rows = capturable_rows(selection.plan, options.max_batch)
    graph = rows and options.executor == "graph"
    return {
        "wanted": options.executor,
        "graph_rows": rows,
        "kind": "graph" if graph else "eager" if selection.not_native else "native",
        "not_native": selection.not_native,
    }


def _kv(plan: Plan, chosen: Policy) -> dict[str, Any]:
    """In which formats keys and values are kept, and what a token takes."""
    return {
        "format": plan.cache.words,
        "layers": list(plan.cache.dtypes),
        "exceptions": {path: chosen.reasons[path] for path in chosen.kv if path in chosen.reasons},
        "bytes_per_token": page_bytes(plan, 1),
        "bytes_per_token_wide": page_bytes(with_cache(plan, COMPUTE), 1),
    }


def _write(writer: EngineWriter, packer: Packer, progress: Progress) -> None:
    total = sum(entry.nbytes for shard in layout.shards(packer.plan) for entry in shard.entries)
    with progress(total, "writing weights") as shown:
        writer.weights(packer.plan, packer, shown.advance)


def tokenizer_files(model: Model) -> list[tuple[str, bytes]]:
    """The checkpoint's tokenizer files as they are, if it has any; the byte tokenizer for a random shape."""
    if model.tokenizer_dir is None:
        return [("bytes.json", json.dumps({"vocab_size": model.recipe.vocab}).encode())]
    try:
        files = tokenizers.files(model.tokenizer_dir)
    except TokenizerError as error:
        if error.problem != "no tokenizer":
            raise
        return []  # such an engine is run with token ids
    tokenizers.load(model.tokenizer_dir, model.recipe.vocab)  # what could not be used is said now, not when it runs
    return [(path.name, path.read_bytes()) for path in files]
