"""`allotrope run`: generate text from prompts."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from allotrope.commands import generation
from allotrope.commands.output import Output, time_text
from allotrope.errors import NumericalError, UsageError

if TYPE_CHECKING:
    from allotrope.api import Delta

HELP = "Generate text from prompts. Several prompts share the batch;\n- reads one from standard input."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument("prompts", metavar="PROMPT", nargs="+", help="text to continue; - is standard input")
    parser.add_argument("--stream", action="store_true", help="print tokens as they come (one prompt)")
    generation.add_arguments(parser, max_tokens=64)


def run(args: argparse.Namespace, out: Output) -> int:
    """Generate and print."""
    if args.stream and len(args.prompts) > 1:
        raise UsageError(f"--stream prints one answer, {len(args.prompts)} prompts were given", remedy="drop --stream")
    params = generation.sampling_params(args)  # wrong values are told before an engine is loaded
    prompts = [_text(prompt) for prompt in _with_stdin(args.prompts)]
    with generation.open_llm(args, out) as llm:
        answers = [_Answer() for _ in prompts]
        start, first = time.perf_counter(), None
        for delta in llm.stream(prompts, params):
            if first is None and delta.token_ids:
                first = time.perf_counter() - start
            answers[delta.index].take(delta)
            if args.stream:
                out.write(delta.text)
        seconds = time.perf_counter() - start
    if args.stream:
        out.line()
    else:
        _print(prompts, answers, out)
    count = sum(len(answer.token_ids) for answer in answers)
    rate = count / seconds if seconds else None
    if first is not None and rate is not None:
        out.line(f"({count} tokens, first after {time_text(first)}, {rate:.1f} tokens/s)")
    out.result(
        {
            "outputs": [vars(answer) for answer in answers],
            "ttft_ms": None if first is None else first * 1e3,
            "tokens_per_s": rate,
        }
    )
    failed = next((answer.error for answer in answers if answer.error), None)
    if failed:
        raise NumericalError(failed, remedy="check the engine with: allotrope verify")
    return 0


class _Answer:
    """One prompt's answer, as it grows; its attributes are the JSON's keys."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.error: str | None = None

    def take(self, delta: Delta) -> None:
        """Add what came."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.finish_reason, self.error = delta.finish_reason, delta.error


def _with_stdin(prompts: list[str]) -> list[str]:
    if prompts.count("-") > 1:
        raise UsageError("standard input was named twice", remedy="give - once")
    return [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]


def _text(prompt: str) -> str:
    """The prompt, if it is text: arguments that are not UTF-8 arrive with surrogates."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError("a prompt is not UTF-8", remedy="give text in UTF-8") from error
    return prompt


def _print(prompts: list[str], answers: list[Any], out: Output) -> None:
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        if len(prompts) > 1:
            out.line(f"── {i} {_short(prompt)}".rstrip())
        out.line(answer.text)


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 70 else f"{line[:69]}…"
