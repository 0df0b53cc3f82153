"""`allotrope run`: generate text from prompts."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allotrope.commands import generation
from allotrope.commands.output import Output, time_text
from allotrope.errors import NumericalError, UsageError

if TYPE_CHECKING:
    from allotrope.api import CompletionOutput, Logprob, RequestOutput

HELP = "Generate text from prompts. Several prompts share the batch;\n- reads one from standard input."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument("prompts", metavar="PROMPT", nargs="+", help="text to continue; - is standard input")
    parser.add_argument("--stream", action="store_true", help="print tokens as they come (one answer)")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="answers to each prompt (1)")
    parser.add_argument("--logprobs", type=int, metavar="K", help="JSON: log-probabilities, and of the K likeliest")
    parser.add_argument("--prompt-logprobs", type=int, metavar="K", help="JSON: the same of the prompt's tokens")
    generation.add_sampling(parser, max_tokens=64)
    generation.add_running(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Generate and print."""
    if args.stream and len(args.prompts) > 1:
        raise UsageError(f"--stream prints one answer, {len(args.prompts)} prompts were given", remedy="drop --stream")
    if args.stream and args.n > 1:
        raise UsageError(f"--stream prints one answer, --n is {args.n}", remedy="drop --stream")
    params = generation.sampling_params(args)  # wrong values are told before an engine is loaded
    prompts = [_text(prompt) for prompt in _with_stdin(args.prompts)]
    with generation.open_llm(args, out) as llm:
        start, first = time.perf_counter(), None
        deltas = llm.stream(prompts, params)
        for delta in deltas:
            if first is None and delta.token_ids:
                first = time.perf_counter() - start
            if args.stream:
                out.write(delta.text)
        seconds, outputs = time.perf_counter() - start, deltas.outputs()
    if args.stream:
        out.line()
    else:
        _print(prompts, outputs, out)
    count = sum(output.usage.completion_tokens for output in outputs)
    rate = count / seconds if seconds else None
    if first is not None and rate is not None:
        out.line(f"({count} tokens, first after {time_text(first)}, {rate:.1f} tokens/s)")
    out.result(
        {
            "outputs": [_json(i, output, answer) for i, output in enumerate(outputs) for answer in output.outputs],
            "ttft_ms": None if first is None else first * 1e3,
            "tokens_per_s": rate,
        }
    )
    failed = next((output.error for output in outputs if output.error), None)
    if failed:
        raise NumericalError(failed, remedy="check the engine with: allotrope verify")
    return 0


def _json(prompt: int, output: RequestOutput, answer: CompletionOutput) -> dict[str, Any]:
    """One answer, and which it is; what was not asked for is not there."""
    found: dict[str, Any] = {
        "prompt": prompt,
        "index": answer.index,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "cached_tokens": output.num_cached_tokens,
        "error": output.error,
    }
    if answer.score is not None:
        found |= {"score": answer.score, "cumulative_logprob": answer.cumulative_logprob}
    if answer.logprobs is not None:
        found["logprobs"] = _rows(answer.logprobs)
    if output.prompt_logprobs is not None and not answer.index:
        found["prompt_logprobs"] = _rows(output.prompt_logprobs)
    return found


def _rows(logprobs: Sequence[dict[int, Logprob] | None]) -> list[list[dict[str, Any]] | None]:
    """For each token itself and then the likeliest."""
    return [
        None if row is None else [{"token_id": token} | vars(one) for token, one in row.items()] for row in logprobs
    ]


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


def _print(prompts: list[str], outputs: Sequence[RequestOutput], out: Output) -> None:
    """The answers, each under its prompt if there are several; beams' with their scores."""
    several = sum(len(output.outputs) for output in outputs) > 1
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), start=1):
        for answer in output.outputs:
            if several:
                which = f"{i}" if len(output.outputs) == 1 else f"{i}.{answer.index + 1}"
                score = "" if answer.score is None else f" ({answer.score:.3f})"
                out.line(f"── {which}{score} {_short(prompt)}".rstrip())
            out.line(answer.text)


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 70 else f"{line[:69]}…"
