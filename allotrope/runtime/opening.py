"""From an engine's folder to something that runs: device, tokenizer, executor, scheduler, loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from allotrope.errors import UsageError
from allotrope.runtime import step
from allotrope.runtime.loop import Loop
from allotrope.runtime.options import RuntimeOptions
from allotrope.runtime.prompts import Reader
from allotrope.runtime.request import Limits
from allotrope.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from allotrope.artifact.engine import Engine
    from allotrope.artifact.plan import Plan
    from allotrope.hw.device import Device
    from allotrope.runtime.eager import EagerExecutor
    from allotrope.runtime.native import NativeExecutor
    from allotrope.tokenizers import Tokenizer


class Executor(step.Executor, Protocol):
    """An executor with its KV pool."""

    pages: int

    def close(self) -> None:
        """Let go of all memory."""
        ...


@dataclass(frozen=True)
class Opened:
    """An engine, ready to run."""

    engine: Engine
    tokenizer: Tokenizer
    executor: Executor
    limits: Limits
    policy: str
    loop: Loop
    reader: Reader


def open_folder(folder: Path, options: RuntimeOptions, *, timed: bool = False) -> Opened:
    """Open an engine and settle everything that the options leave open. `timed`: each step's calls are timed."""
    return open_with(*_open(folder, options.device), options, timed=timed)


def open_with(engine: Engine, device: Device, options: RuntimeOptions, *, timed: bool = False) -> Opened:
    """Likewise, of an engine that is there already."""
    tokenizer = _tokenizer(engine)
    plan, generation = engine.manifest.plan, engine.manifest.generation
    max_len = options.length(engine.manifest.limits["max_len"])
    tokenizer.limit(max_len)
    executor = _executor(engine, device, options, max_len, timed)
    scheduler = Scheduler(
        executor.pages,
        options.page_size,
        options.max_num_seqs,
        options.max_batched_tokens,
        max_len,
        policy=options.policy,
        prefix_cache=options.prefix_cache,
        rotary_lengths=_rotary_lengths(engine),
    )
    # The tokenizer knows ends that a chat format adds (Qwen's marks) and no generation config lists.
    ends = dict.fromkeys((*(generation.get("eos_token_ids") or ()), *tokenizer.eos_ids))
    limits = Limits(plan.vocab, max_len, tuple(ends))
    loop = Loop(executor, scheduler, tokenizer, limits, skip_step=options.skip_step, check_step=options.check_step)
    reader = Reader(tokenizer, generation.get("bos_token_id", tokenizer.bos_id))
    return Opened(engine, tokenizer, executor, limits, options.policy, loop, reader)


def _open(folder: Path, wanted: str) -> tuple[Engine, Device]:
    from allotrope.artifact.engine import open_engine
    from allotrope.hw.detect import detect

    device = None if wanted == "auto" else detect(wanted)
    engine = open_engine(folder, device=device)
    return engine, device or detect(str(engine.manifest.device["kind"]))


def _tokenizer(engine: Engine) -> Tokenizer:
    from allotrope.tokenizers import absent, load

    if not engine.tokenizer_dir.is_dir() or not any(engine.tokenizer_dir.iterdir()):
        return absent()  # the checkpoint came without one; its files are listed in the manifest if there were any
    return load(engine.tokenizer_dir, engine.manifest.plan.vocab)


def _rotary_lengths(engine: Engine) -> tuple[int, ...]:
    """Prompt lengths beyond which keys depend on the prompt's length, not only on the tokens before them."""
    calls = (call.params for call in engine.manifest.plan.calls)
    return tuple(sorted({int(p["original_len"]) for p in calls if p.get("scaling") in ("dynamic", "qwen_ntk")}))


def _executor(engine: Engine, device: Device, options: RuntimeOptions, max_len: int, timed: bool) -> Executor:
    """The executor, with as many KV pages as could be used and as fit."""
    from allotrope import settings
    from allotrope.runtime.buffers import available_bytes, page_bytes
    from allotrope.runtime.weights import weight_bytes

    plan = engine.manifest.plan
    free = max(available_bytes(device.torch_name) - weight_bytes(plan), 0)
    # A GPU is ours alone, main memory is not; what is left is for activations.
    share = 0.85 if device.kind == "cuda" else 0.5
    return _executor_class(plan, device, options)(
        engine,
        device=device,
        pages=options.pages(max_len, page_bytes(plan, options.page_size), free, share),
        page_size=options.page_size,
        max_tokens=min(options.max_batched_tokens, options.max_num_seqs * max_len),
        max_requests=options.max_num_seqs,
        threads=options.threads or settings.threads(),
        timed=timed,
    )


def _executor_class(plan: Plan, device: Device, options: RuntimeOptions) -> type[NativeExecutor | EagerExecutor]:
    """The executor asked for. auto: on a CPU the native one where the core computes all that the plan calls; on a GPU
    graphs where its tactics can be recorded; else eager."""
    from allotrope.runtime.program import capturable_rows, unserved

    if device.kind == "cpu":
        if options.executor == "graph":
            raise UsageError("executor is 'graph'; on a CPU it must be native or eager", remedy="leave it at auto")
        missing = unserved(plan) if options.executor != "eager" else None
        if missing is not None and options.executor == "native":
            path, tactic = missing
            problem = f"executor is 'native', but {path} is computed by {tactic}, which is not the native core's"
            raise UsageError(problem, remedy="build the engine anew, or leave the executor at auto")
        if options.executor != "eager" and missing is None:
            from allotrope.runtime.native import NativeExecutor

            return NativeExecutor
    from allotrope.runtime.eager import EagerExecutor

    if options.executor == "native":
        raise UsageError(f"executor is 'native'; on {device.kind} it must be graph or eager", remedy="leave it at auto")
    if device.kind == "cpu" or options.executor == "eager":
        return EagerExecutor
    from allotrope.runtime.graph import GraphExecutor

    records = options.executor == "graph" or capturable_rows(plan, options.max_num_seqs) > 0
    return GraphExecutor if records else EagerExecutor
