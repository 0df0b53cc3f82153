"""What Python users import: `LLM`, `SamplingParams`, and what `generate` and `stream` give back."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from allotrope.errors import RequestError, UsageError
from allotrope.runtime.loop import Generation, Loop
from allotrope.runtime.options import RuntimeOptions
from allotrope.runtime.outputs import CompletionOutput, Delta, Logprob, RequestOutput
from allotrope.runtime.request import Limits
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from allotrope.artifact.engine import Engine
    from allotrope.build.builder import Progress
    from allotrope.hw.device import Device
    from allotrope.runtime.eager import EagerExecutor
    from allotrope.tokenizers import Tokenizer

__all__ = ["LLM", "CompletionOutput", "Delta", "Logprob", "RequestOutput", "SamplingParams"]

Prompt = str | Sequence[int] | Mapping[str, Any]
_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "prompt_token_ids": (list, tuple),
    "either": (str, list, tuple),
}


class LLM:
    """An engine, loaded and ready. Use it as a context manager, or `close` it, to give its memory back.

    `engine_or_checkpoint` is a folder that `allotrope build` wrote, or a checkpoint (also `random:SHAPE`),
    which is built first and kept. `options` are those of `RuntimeOptions` and, for a checkpoint, the builder's.
    """

    def __init__(self, engine_or_checkpoint: str | Path, **options: Any) -> None:
        runtime, build = _split(options)
        folder = engine_folder(engine_or_checkpoint, runtime.device, build, threads=runtime.threads)
        self.engine, device = _open(folder, runtime.device)
        self.tokenizer = _tokenizer(self.engine)
        plan, generation = self.engine.manifest.plan, self.engine.manifest.generation
        max_len = runtime.length(self.engine.manifest.limits["max_len"])
        self.tokenizer.limit(max_len)
        executor = _executor(self.engine, device, runtime, max_len)
        scheduler = Scheduler(
            executor.pages, runtime.page_size, runtime.max_num_seqs, runtime.max_batched_tokens, max_len
        )
        # The tokenizer knows ends that a chat format adds (Qwen's marks) and no generation config lists.
        ends = dict.fromkeys((*(generation.get("eos_token_ids") or ()), *self.tokenizer.eos_ids))
        self.limits = Limits(plan.vocab, max_len, tuple(ends))
        self._bos = generation.get("bos_token_id", self.tokenizer.bos_id)
        self._loop: Loop | None = Loop(executor, scheduler, self.tokenizer, self.limits)
        self._executor = executor

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer all prompts; the outputs come in the prompts' order.

        A prompt is text, token ids, or {"prompt": …} or {"prompt_token_ids": …}; an empty one means the
        beginning of a text (BOS). `sampling_params` is one for all, or one per prompt.
        """
        loop = self._open_loop()
        generations = self._prepare(loop, prompts, sampling_params)
        try:
            for generation in generations:
                loop.submit(generation)
            while any(generation.request.finish_reason is None for generation in generations):
                loop.step()
        finally:
            _cancel(loop, generations)
        with loop.lock:  # another thread's step may have ended one and be about to add its text
            return [loop.output(generation) for generation in generations]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[Delta]:
        """As `generate`, but gives each request's new tokens and text as they come.

        The prompts are checked now and queued with the first `next`; leaving early cancels what is left.
        """
        loop = self._open_loop()
        return _deltas(loop, self._prepare(loop, prompts, sampling_params))

    def close(self) -> None:
        """Give memory back. Generating is an error from now on."""
        self._loop = None
        self._executor.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_loop(self) -> Loop:
        if self._loop is None:
            raise UsageError("this LLM has been closed", remedy="make a new one")
        return self._loop

    def _prepare(
        self,
        loop: Loop,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Generation]:
        """Check all prompts before any is queued: a bad one leaves nothing behind."""
        listed = _listed(prompts)
        params = _params_for(sampling_params, len(listed))
        generations = []
        for i, (prompt, own) in enumerate(zip(listed, params, strict=True)):
            text, token_ids = self._parse(prompt, i)
            if own.stop and not self.tokenizer.reads_text:
                raise RequestError("the engine has no tokenizer, so no text can stop it", remedy="use stop_token_ids")
            generations.append(loop.prepare(text, token_ids, own))
        return generations

    def _parse(self, prompt: Prompt, i: int) -> tuple[str | None, Sequence[int]]:
        """A prompt's text, if it is text, and its token ids."""
        name, kinds = f"prompts[{i}]", _KINDS["either"]
        given: Any = prompt
        if isinstance(prompt, Mapping):
            key = next(iter(prompt)) if len(prompt) == 1 else None
            if key not in ("prompt", "prompt_token_ids"):
                raise RequestError(
                    f"{name} has the keys {sorted(map(str, prompt))}; it must have prompt or prompt_token_ids"
                )
            name, given, kinds = f"{name}.{key}", prompt[key], _KINDS[key]
        if not any(isinstance(given, kind) for kind in kinds):
            raise RequestError(f"{name} is of type {type(given).__name__}; it must be text or token ids")
        text = given if isinstance(given, str) else None
        token_ids: Sequence[int] = self.tokenizer.encode(given) if isinstance(given, str) else list(given)
        if not token_ids:
            if self._bos is None:
                raise RequestError(
                    f"{name} is empty, and this model has no token to begin a text with", remedy="give some text"
                )
            token_ids = [self._bos]
        return text, token_ids


def _deltas(loop: Loop, generations: list[Generation]) -> Iterator[Delta]:
    """What is new, request by request. Others' steps also advance ours, so it is counted what has been told."""
    told = [(0, 0, False)] * len(generations)  # characters, tokens, the end
    try:
        for generation in generations:
            loop.submit(generation)
        while not all(end for _, _, end in told):
            with loop.lock:
                loop.step()
                deltas = list(_news(generations, told))
            yield from deltas
    finally:
        _cancel(loop, generations)


def _news(generations: list[Generation], told: list[tuple[int, int, bool]]) -> Iterator[Delta]:
    """What has come since it was last told; `told` is brought up to date."""
    for i, generation in enumerate(generations):
        request = generation.request
        now = (len(generation.text), len(request.output), request.finish_reason is not None)
        if now != told[i]:
            (chars, tokens, _), told[i] = told[i], now
            yield Delta(
                request_id=str(request.id),
                index=i,
                text=generation.text[chars : now[0]],
                token_ids=tuple(request.output[tokens : now[1]]),
                finish_reason=request.finish_reason,
                error=request.error,
            )


def _cancel(loop: Loop, generations: list[Generation]) -> None:
    for generation in generations:
        if generation.request.finish_reason is None:
            loop.cancel(generation)


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, whether one or several were given; a list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise RequestError(f"prompts is of type {type(prompts).__name__}; it must be a prompt or a list of prompts")
    if prompts and all(isinstance(item, int) for item in prompts):
        return [list(prompts)]
    return list(prompts)


def _params_for(given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    params = list(given) if isinstance(given, list | tuple) else None
    if params is None or not all(isinstance(item, SamplingParams) for item in params):
        raise RequestError("sampling_params must be SamplingParams or a list of them")
    if len(params) != count:
        raise RequestError(f"sampling_params holds {len(params)} entries for {count} prompts")
    return params


def _split(options: Mapping[str, Any]) -> tuple[RuntimeOptions, dict[str, Any]]:
    """The runtime's options, and the rest, which must be the builder's."""
    own = [field.name for field in fields(RuntimeOptions)]
    runtime = RuntimeOptions(**{name: value for name, value in options.items() if name in own})
    rest = {name: value for name, value in options.items() if name not in own}
    if rest:
        from allotrope.build.options import BuildOptions

        known = own + [field.name for field in fields(BuildOptions)]
        for name in rest:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"options are {', '.join(known)}"
                raise UsageError(f"LLM has no option {name!r}", remedy=hint)
    return runtime, rest


def engine_folder(
    ref: str | Path,
    device: str,
    build: Mapping[str, Any],
    progress: Progress | None = None,
    threads: int | None = None,
) -> Path:
    """The engine that `ref` names: its folder or, for a checkpoint, that of the engine built from it and kept.

    `build` are options that only a build has; `threads` it shares with running, so an engine takes it, too.
    """
    from allotrope.artifact.manifest import FILE
    from allotrope.build import cached

    path = _path(ref)
    # A folder that is no checkpoint either gets an engine's error: it may be half an engine.
    if (path / FILE).exists() or (path.is_dir() and not (path / "config.json").exists()):
        if build:
            raise UsageError(
                f"{next(iter(build))} is an option of building, and {path} has been built",
                remedy="give the checkpoint instead of the engine",
            )
        return path
    return cached(str(ref), progress=progress, device=device, threads=threads, **build)


def _path(ref: object) -> Path:
    """The path that `ref` is; whether anything is there is another question."""
    if not isinstance(ref, str | Path):
        raise UsageError(f"the engine is of type {type(ref).__name__}", remedy="give its folder, or a checkpoint")
    try:
        Path(ref).is_dir()
    except (OSError, ValueError) as error:  # a name that no file system takes, a folder closed to us
        raise UsageError(f"{str(ref)[:100]!r} is no usable path: {error}") from None
    return Path(ref)


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


def _executor(engine: Engine, device: Device, options: RuntimeOptions, max_len: int) -> EagerExecutor:
    """The executor, with as many KV pages as could be used and as fit."""
    from allotrope import settings
    from allotrope.runtime.buffers import available_bytes, page_bytes
    from allotrope.runtime.eager import EagerExecutor
    from allotrope.runtime.weights import weight_bytes

    plan = engine.manifest.plan
    free = max(available_bytes(device.torch_name) - weight_bytes(plan), 0)
    # A GPU is ours alone, main memory is not; what is left is for activations.
    share = 0.85 if device.kind == "cuda" else 0.5
    return EagerExecutor(
        engine,
        device=device,
        pages=options.pages(max_len, page_bytes(plan, options.page_size), free, share),
        page_size=options.page_size,
        max_tokens=min(options.max_batched_tokens, options.max_num_seqs * max_len),
        max_requests=options.max_num_seqs,
        threads=options.threads or settings.threads(),
    )
