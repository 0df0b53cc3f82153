"""`allotrope eval`: perplexity, the distance from the original, and code that runs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.commands import generation
from allotrope.commands.output import Output, count_text, time_text
from allotrope.errors import UsageError

if TYPE_CHECKING:
    from allotrope.eval import code, perplexity
    from allotrope.eval.sides import Sides

WORK = "evaluating"
HELP = (
    "An engine beside its original in transformers. --text: perplexity over strided\n"
    "windows, and how far the distributions over each next token are apart. --code:\n"
    "functions completed greedily, in HumanEval's format; with --execute each is run\n"
    "against its test in a locked-down process, and pass@1 is the share that passes.\n"
    "Texts and prompts are read as they are, without a chat template. Kept in\n"
    "eval.json, one run for each text and setting; completions in completions.jsonl."
)
_TOKENS, _PROBLEMS, _OUTPUT, _BATCH = 4096, 20, 256, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument(
        "--original", metavar="CKPT", help="compare with this, or with an engine's source (ENGINE's own)"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to keep what was found (ENGINE)")
    group = parser.add_argument_group("text")
    group.add_argument("--text", type=Path, metavar="FILE", help="a text in UTF-8, also .gz")
    group.add_argument("--tokens", type=int, metavar="N", help=f"its first N tokens; 0: all ({_TOKENS})")
    group.add_argument("--window", type=int, metavar="N", help="tokens of a window (the model's length, 2048 at most)")
    group.add_argument(
        "--stride", type=int, metavar="N", help="by how much windows move on: each token is told once (half a window)"
    )
    group = parser.add_argument_group("code")
    group.add_argument(
        "--code", type=Path, metavar="FILE", help="task_id, prompt, test, entry_point, canonical_solution a line"
    )
    group.add_argument("--problems", type=int, metavar="N", help=f"the first N ({_PROBLEMS})")
    group.add_argument("--max-output", type=int, metavar="N", help=f"tokens of a completion at most ({_OUTPUT})")
    group.add_argument(
        "--batch-size", type=int, default=_BATCH, metavar="N", help=f"windows or problems at a time ({_BATCH})"
    )
    group.add_argument("--execute", action="store_true", help="run what was written, locked in (without: keep it)")
    generation.add_running(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Evaluate, print and keep."""
    from allotrope.artifact import results
    from allotrope.eval import code, perplexity

    began = time.perf_counter()
    asked_text, asked_code = _text_asked(args), _code_asked(args)
    if asked_text is None and asked_code is None:
        raise UsageError("nothing to evaluate", remedy="give --text FILE, --code FILE or both")
    text = None if asked_text is None else perplexity.read(asked_text)
    problems = None if asked_code is None else code.read_problems(asked_code)
    if args.out is not None:
        results.make_folder(args.out)
    from allotrope.eval.sides import described, open_sides  # torch

    args.max_num_seqs = args.max_num_seqs or args.batch_size
    options, folder = generation.runtime_options(args), generation.evaluated(args, out)
    sides = open_sides(folder, options, args.original, allow_pickle=args.allow_pickle)
    shown: dict[str, Any] = {**described(sides), **_EMPTY}
    samples: dict[str, Any] = {}
    try:
        if asked_text is not None and text is not None:
            read = perplexity.evaluate(sides, asked_text, text, out.progress)
            shown |= {**read.figures(), "text": read.described()}
            samples["text"] = read.samples()
            _print_text(read, shown, out)
        written = None
        if asked_code is not None and problems is not None:
            written = code.complete(sides, asked_code, problems, out.progress)
            shown |= {**written.figures(), "code": written.described()}
            samples["code"] = written.samples()
            _print_code(written, shown, out)
        shown["seconds"] = time.perf_counter() - began
        _keep(args, sides, shown, samples, written, out)
    finally:
        sides.close()
    out.result(shown)
    return 0


_EMPTY: dict[str, Any] = {
    "perplexity": None,
    "perplexity_interval": None,
    "nll_per_token": None,
    "original_perplexity": None,
    "original_nll_per_token": None,
    "perplexity_ratio": None,
    "perplexity_ratio_interval": None,
    "kl": None,
    "same_top1": None,
    "probability_change": None,
    "text": None,
    "pass_at_1": None,
    "original_pass_at_1": None,
    "pass_at_1_why_not": "no --code was given",
    "pass_at_1_paired": None,
    "code": None,
}


def _text_asked(args: argparse.Namespace) -> perplexity.Asked | None:
    from allotrope.eval.perplexity import Asked

    _only_with(args, "text", ("tokens", "window", "stride"))
    if args.text is None:
        return None
    tokens = _TOKENS if args.tokens is None else args.tokens
    return Asked(args.text, tokens, args.window, args.stride, args.seed)


def _code_asked(args: argparse.Namespace) -> code.Asked | None:
    from allotrope.eval.code import Asked

    _only_with(args, "code", ("problems", "max_output", "execute"))
    if not 1 <= args.batch_size <= 4096:
        raise UsageError(f"--batch-size is {args.batch_size}", remedy="give a number from 1 to 4096")
    if args.code is None:
        return None
    problems = _PROBLEMS if args.problems is None else args.problems
    most = _OUTPUT if args.max_output is None else args.max_output
    return Asked(args.code, problems, most, args.batch_size, args.execute, args.seed)


def _only_with(args: argparse.Namespace, owner: str, names: tuple[str, ...]) -> None:
    """An option that would do nothing is an error."""
    if getattr(args, owner) is None:
        for name in names:
            if getattr(args, name) not in (None, False):
                raise UsageError(f"--{name.replace('_', '-')} goes with --{owner}", remedy=f"give --{owner} FILE")


def _print_text(found: perplexity.Found, shown: dict[str, Any], out: Output) -> None:
    read, kl, change = shown["text"], shown["kl"], shown["probability_change"]
    out.sentence(
        f"{found.asked.file.name}: {read['read']:,} of {read['tokens']:,} tokens, {read['scored']:,} scored in "
        f"{read['windows']} window{'s'[: read['windows'] != 1]} of {read['window']:,}, moved by {read['stride']:,}"
    )
    rows = [
        ("perplexity", *(f"{shown[f'{side}perplexity']:.6g}" for side in ("", "original_"))),
        ("nats per token", *(f"{shown[f'{side}nll_per_token']:.6f}" for side in ("", "original_"))),
    ]
    out.table(("", "engine", "original"), rows)
    low, high = shown["perplexity_ratio_interval"]
    out.line(f"ratio of perplexities: {shown['perplexity_ratio']:.6f} ({low:.6f} to {high:.6f} in 95 %)")
    out.line(
        f"KL: mean {kl['mean']:.3g}, median {kl['median']:.3g}, 99 % {kl['p99']:.3g}, largest {kl['max']:.3g} nats"
    )
    out.line(
        f"same top-1: {shown['same_top1']:.2%}; the right token's probability changes by "
        f"{change['mean']:+.1e},\n  RMS {change['rms']:.1e}"
    )
    seconds = read["seconds"]
    out.line(f"engine in {time_text(seconds['engine'])}, original in {time_text(seconds['original'])}")


def _print_code(found: code.Found, shown: dict[str, Any], out: Output) -> None:
    what, tokens = shown["code"], shown["code"]["generated_tokens"]
    out.sentence(
        f"{found.asked.file.name}: {what['problems']} problems, {what['same_completions']} of "
        f"{len(found.fitting)} completions alike; engine {count_text(tokens['engine'])} tokens in "
        f"{time_text(what['seconds']['engine'])}, original {count_text(tokens['original'])} in "
        f"{time_text(what['seconds']['original'])}"
    )
    if what["too_long"]:
        out.sentence(f"{what['too_long']} prompts do not fit the model and count as failed")
    if shown["pass_at_1"] is None:
        out.line(f"pass@1: {shown['pass_at_1_why_not']}")
        return
    paired = shown["pass_at_1_paired"]
    least = paired["detectable"]
    out.line(f"pass@1: {shown['pass_at_1']:.1%}, the original's {shown['original_pass_at_1']:.1%}")
    low, high = (f"{100 * end:+.1f}" if end is not None else "–" for end in paired["interval"])
    seen = "" if least is None else f"; so many problems show {100 * least:.1f} four times in five"
    out.sentence(f"difference {100 * paired['difference']:+.1f} points ({low} to {high}){seen}")


def _keep(
    args: argparse.Namespace,
    sides: Sides,
    shown: dict[str, Any],
    samples: dict[str, Any],
    written: code.Found | None,
    out: Output,
) -> None:
    """Keep figures and completions in the folder asked for, or in the engine's if that can be written."""
    from allotrope.artifact import manifest, results
    from allotrope.eval.earlier import KEY, earlier

    engine = sides.opened.engine
    folder = args.out or engine.path
    before = earlier(folder / "eval.json", shown, manifest.digest(engine.path))
    try:
        path = results.keep(folder, "eval", {**shown, KEY: before}, engine, sides.device, args.command, samples)
        out.line(f"kept: {path}")
        if written is not None:
            out.line(f"completions: {written.keep(folder)}")
    except OSError as error:
        if args.out is not None:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        out.line(f"(not kept: {folder} cannot be written; name another folder with -o)")
