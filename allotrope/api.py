"""What Python users import: `LLM` and `AsyncLLM`, `SamplingParams`, and what generating gives back."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from allotrope.errors import RequestError, UsageError
from allotrope.runtime.asynchronous import AsyncEngine, Stream
from allotrope.runtime.generation import Generation
from allotrope.runtime.loop import HOLD_S, STREAMED_HOLD_S, Loop
from allotrope.runtime.opening import Opened, open_folder
from allotrope.runtime.options import RuntimeOptions
from allotrope.runtime.outputs import CompletionOutput, Delta, Logprob, RequestOutput, Usage
from allotrope.runtime.prompts import Messages, Prompt, conversations, listed, params_for, priorities_for
from allotrope.runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from allotrope.build.builder import Progress

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Delta",
    "Deltas",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "Stream",
    "Usage",
]


class LLM:
    """An engine, loaded and ready. Use it as a context manager, or `close` it, to give its memory back.

    `engine_or_checkpoint` is a folder that `allotrope build` wrote, or a checkpoint (also `random:SHAPE`),
    which is built first and kept. `options` are those of `RuntimeOptions` and, for a checkpoint, the builder's.
    """

    def __init__(self, engine_or_checkpoint: str | Path, **options: Any) -> None:
        opened = _opened(engine_or_checkpoint, options)
        self.engine, self.tokenizer, self.limits = opened.engine, opened.tokenizer, opened.limits
        self._opened, self._executor = opened, opened.executor
        self._loop: Loop | None = opened.loop

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Answer all prompts; the outputs come in the prompts' order.

        A prompt is text, token ids, or {"prompt": …} or {"prompt_token_ids": …}; an empty one means the
        beginning of a text (BOS). `sampling_params` and `priority` are one for all, or one per prompt; where the
        policy is priority, the lowest is served first.
        """
        loop = self._open_loop()
        generations = self._prepare(loop, prompts, sampling_params, priority)
        try:
            for generation in generations:
                loop.submit(generation, HOLD_S)
            for generation in generations:
                while not generation.ended:
                    loop.step()
        finally:
            _leave(loop, generations)
        with loop.lock:  # another thread's step may have ended one and be about to add its text
            return [generation.output() for generation in generations]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of a list of them, as the checkpoint's chat template writes it.

        A message is {"role": …, "content": …}. `tools` and `variables` go to the template.
        """
        reader = self._opened.reader
        prompts = [reader.conversation(talk, tools, variables) for talk in conversations(messages)]
        return self.generate(prompts, sampling_params, priority=priority)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
    ) -> Deltas:
        """As `generate`, but gives each answer's new tokens and text as they come.

        The prompts are checked now and queued with the first `next`; leaving early cancels what is left.
        """
        loop = self._open_loop()
        return Deltas(loop, self._prepare(loop, prompts, sampling_params, priority))

    def metrics(self) -> dict[str, Any]:
        """What has been counted since the engine was opened, and what there is now; see `Metrics`."""
        return self._open_loop().metrics()

    def close(self) -> None:
        """Give memory back. Generating is an error from now on."""
        if self._loop is None:
            return
        with self._loop.lock:  # another thread may be in the middle of a step
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
        priority: int | Sequence[int],
    ) -> list[Generation]:
        """Check all prompts before any is queued: a bad one leaves nothing behind."""
        items = listed(prompts)
        params = params_for(sampling_params, len(items))
        priorities = priorities_for(priority, len(items), self._opened.policy)
        generations = []
        for i, (item, own, rank) in enumerate(zip(items, params, priorities, strict=True)):
            text, token_ids = self._opened.reader.read(item, f"prompts[{i}]")
            self._opened.reader.check(own)
            try:
                generations.append(loop.prepare(text, token_ids, own, index=i, priority=rank))
            except RequestError as error:
                where = f"prompts[{i}]" if len(items) > 1 else error.where
                raise RequestError(error.problem, where=where, remedy=error.remedy) from None
        return generations


class Deltas(Iterator[Delta]):
    """What is new, answer by answer, as it comes. Leaving it, or `close`, cancels what is left."""

    def __init__(self, loop: Loop, generations: list[Generation]) -> None:
        self._loop, self._generations = loop, generations
        self._running = _deltas(loop, generations)

    def __next__(self) -> Delta:
        return next(self._running)

    def close(self) -> None:
        """Cancel what is left."""
        self._running.close()

    def outputs(self) -> list[RequestOutput]:
        """The prompts' whole answers, as they stand."""
        with self._loop.lock:
            return [generation.output() for generation in self._generations]


class AsyncLLM(AsyncEngine):
    """An `LLM` for asyncio: `async for delta in engine.generate(…)`, `await engine.answer(…)`, many at once.

    Takes what `LLM` takes. Opening it takes as long as opening that one.
    """

    def __init__(self, engine_or_checkpoint: str | Path, **options: Any) -> None:
        super().__init__(_opened(engine_or_checkpoint, options))


def _deltas(loop: Loop, generations: list[Generation]) -> Generator[Delta, None, None]:
    """Others' steps also advance ours, so each of ours puts itself down when it has news, whoever stepped."""
    changed: dict[Generation, None] = {}
    try:
        for generation in generations:
            generation.changed = changed
            loop.submit(generation, STREAMED_HOLD_S)
        left = set(generations)
        while left:
            with loop.lock:
                loop.step()
                deltas = [delta for generation in changed for delta in generation.news()]
                left -= {generation for generation in changed if generation.ended}
                changed.clear()
            yield from deltas
    finally:
        _leave(loop, generations)


def _leave(loop: Loop, generations: list[Generation]) -> None:
    for generation in generations:
        loop.cancel(generation)
    loop.drain()


def _opened(ref: str | Path, options: Mapping[str, Any]) -> Opened:
    runtime, build = _split(options)
    return open_folder(engine_folder(ref, runtime.device, build, threads=runtime.threads), runtime)


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
