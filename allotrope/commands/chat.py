"""`allotrope chat`: talk with an engine that has a chat template."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from allotrope.commands import generation
from allotrope.commands.output import Output
from allotrope.errors import NumericalError, RequestError, UsageError

if TYPE_CHECKING:
    from allotrope.api import LLM, SamplingParams

HELP = """\
Talk with an engine. /reset forgets, /exit or Ctrl-D leaves, Ctrl-C stops an
answer. Of piped input, one answer to all of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    generation.add_sampling(parser, max_tokens=512)
    generation.add_running(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """A conversation on a terminal; of piped input, one answer to all of it."""
    params = generation.sampling_params(args)
    with generation.open_llm(args, out) as llm:
        if not llm.tokenizer.has_chat_template:
            raise UsageError(
                "the engine has no chat template", where=args.engine, remedy="use: allotrope run ENGINE PROMPT"
            )
        talk = _Conversation(llm, params, args.system, out)
        if sys.stdin.isatty():
            _converse(talk, out)
        else:
            text = sys.stdin.read().strip()  # as a line of a terminal is
            if not text:
                raise UsageError("standard input is empty", remedy="say something")
            talk.ask(text)
    out.result({"outputs": talk.outputs, "ttft_ms": talk.ttft_ms, "tokens_per_s": talk.tokens_per_s})
    return 0


class _Conversation:
    """The messages so far, and the figures of the last answer."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, out: Output) -> None:
        self._llm, self._params, self._out = llm, params, out
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._opening)
        self.outputs: list[dict[str, Any]] = []
        self.ttft_ms: float | None = None
        self.tokens_per_s: float | None = None

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._opening)

    def ask(self, text: str) -> None:
        """One turn, printed as it comes. Ctrl-C ends the answer, and what was said of it stays said."""
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self._llm.tokenizer.chat_ids(messages)
        said, tokens, reason, start, first = "", list[int](), "abort", time.perf_counter(), None
        deltas = self._llm.stream({"prompt_token_ids": prompt}, self._params)
        with _interruptible() as interrupted:
            for delta in deltas:
                first = first or time.perf_counter()
                said += delta.text
                tokens += delta.token_ids
                self._out.write(delta.text)
                if delta.error:
                    raise NumericalError(delta.error, remedy="check the engine with: allotrope verify")
                reason = delta.finish_reason or reason
                if interrupted:
                    break
        self._out.line()
        self.messages = [*messages, {"role": "assistant", "content": said}]
        self.outputs.append({"text": said, "token_ids": tokens, "finish_reason": reason})
        self.ttft_ms = None if first is None else (first - start) * 1e3
        self.tokens_per_s = len(tokens) / (time.perf_counter() - start)


def _converse(talk: _Conversation, out: Output) -> None:
    """Read, answer, repeat."""
    out.line("/reset forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer")
    while True:
        out.write("> ")
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            out.line()
            continue
        if not line or line.strip() == "/exit":
            out.line()
            return
        if line.strip() == "/reset":
            talk.reset()
        elif line.strip():
            try:
                talk.ask(line.strip())
            except RequestError as error:  # a conversation that has grown too long need not end the program
                out.line(f"{error}; /reset begins anew")


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Ctrl-C becomes a mark to look at between tokens, so that no step is cut in half."""
    marks: list[int] = []

    def mark(number: int, frame: FrameType | None) -> None:
        marks.append(number)

    before = signal.signal(signal.SIGINT, mark)
    try:
        yield marks
    finally:
        signal.signal(signal.SIGINT, before)
