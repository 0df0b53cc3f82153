"""`allotrope summarize`: summaries of the same articles by an engine and its original, in ROUGE."""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.commands import generation
from allotrope.commands.output import Output, time_text
from allotrope.errors import UsageError

if TYPE_CHECKING:
    from allotrope.eval.sides import Sides
    from allotrope.eval.summaries import Asked, Found

WORK = "summarizing"
HELP = (
    "Summaries of the same articles by an engine and by its original in transformers,\n"
    "in one run: ROUGE of both, paired by article, with a 95 % interval and the least\n"
    "difference that so many articles could have shown. Articles are read in the\n"
    "file's order, asked about by ` TL;DR:` behind them, cut from the left to fit,\n"
    "and answered greedily. An engine with a chat template is asked through that.\n"
    "Kept in summarize.json, and side by side in summaries.csv."
)
TABLE = "summaries.csv"
_EXAMPLES, _BATCH = 20, 8
_LISTED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="CSV", help="columns id, article, highlights, as CNN/DailyMail has"
    )
    parser.add_argument(
        "--original", metavar="CKPT", help="compare with this, or with an engine's source (ENGINE's own)"
    )
    parser.add_argument(
        "--examples", type=int, default=_EXAMPLES, metavar="N", help=f"the first N articles ({_EXAMPLES})"
    )
    parser.add_argument("--max-output", type=int, default=100, metavar="N", help="tokens of a summary at most (100)")
    parser.add_argument("--max-input", type=int, metavar="N", help="tokens of a prompt at most (all that leaves room)")
    parser.add_argument(
        "--batch-size", type=int, default=_BATCH, metavar="N", help=f"articles at a time, on both sides ({_BATCH})"
    )
    parser.add_argument(
        "--prompt", choices=("auto", "plain", "chat"), default="auto", help="auto: chat where there is a template"
    )
    parser.add_argument("--stem", action="store_true", help="words that share a stem are the same to ROUGE")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="POINTS",
        help="exit 3 if ROUGE-1 is more than this below the original's (0 to 100)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to keep what was found (ENGINE)")
    generation.add_running(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Summarize, print and keep; 3 when the engine's summaries are worse than --threshold allows."""
    from allotrope.artifact import results
    from allotrope.eval import rouge
    from allotrope.eval.summaries import Asked, read_articles

    began = time.perf_counter()
    names = ("data", "examples", "max_output", "max_input", "batch_size", "prompt", "stem", "threshold", "seed")
    asked = Asked(**{name: getattr(args, name) for name in names})
    articles, scorer = read_articles(asked, out.sentence), rouge.scorer(stem=asked.stem)
    if args.out is not None:
        results.make_folder(args.out)
    sides = _open(args, asked, out)
    try:
        from allotrope.eval.sides import described
        from allotrope.eval.summaries import summarize

        found = summarize(sides, asked, articles, scorer, out.progress)
        shown = {**described(sides), **found.to_json(), "seconds": time.perf_counter() - began}
        _print(found, shown, out)
        _keep(args, sides, found, shown, out)
    finally:
        sides.close()
    out.result(shown)
    return 3 if found.passed is False else 0


def _open(args: argparse.Namespace, asked: Asked, out: Output) -> Sides:
    from allotrope.eval.sides import open_sides

    args.max_num_seqs = args.max_num_seqs or asked.batch_size
    options = generation.runtime_options(args)
    folder = generation.evaluated(args, out)
    return open_sides(folder, options, args.original, allow_pickle=args.allow_pickle)


def _print(found: Found, shown: dict[str, Any], out: Output) -> None:
    data, means, pairs = shown["data"], shown["rouge"], shown["paired_by"]
    cut = f", {data['cut']} of them cut to fit" if data["cut"] else ""
    out.sentence(
        f"{data['examples']} articles of {found.asked.data.name}{cut}: greedy summaries of at most "
        f"{data['max_output']} tokens, asked {'through the chat template' if found.chat else 'by TL;DR:'}"
    )
    rows = [
        (
            name,
            f"{means['engine'][name]:.2f}",
            f"{means['original'][name]:.2f}",
            f"{one['difference']:+.2f}",
            f"{_figure(one['interval'][0])} to {_figure(one['interval'][1])}",
            f"{one['p_value']:.2g}",
            _figure(one["detectable"]),
        )
        for name, one in pairs.items()
    ]
    out.table(("F × 100", "engine", "original", "difference", "95 % interval", "p", "detectable"), rows)
    out.line("p: how often chance alone would give as much. detectable: the least true")
    out.line("difference that so many articles show four times in five.")
    for name, one in shown["sides"].items():
        out.line(f"{name}: {one['tokens']} tokens in {time_text(one['seconds'])}, {one['tokens_per_s']:.1f} tokens/s")
    for line in _divergence_lines(found):
        out.line(line)
    for line in _gate_lines(found):
        out.sentence(line)


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def _divergence_lines(found: Found) -> list[str]:
    apart = found.divergences
    if not apart:
        return ["every text is the original's, token by token"]
    lines = [f"{len(found.articles) - len(apart)} of {len(found.articles)} texts are the original's, token by token"]
    judged = [one for one in apart if one.margin is not None]
    if judged:
        lines.append("the others first differ where the original, in a finer precision, prefers")
    for one in judged[:_LISTED]:
        word = "rounding explains it" if one.explained else "NOT EXPLAINED by rounding"
        lines.append(f"  {one.example[:24]}, token {one.position}: by {one.margin:.1e} (floor {one.floor:.1e}): {word}")
    if len(judged) > _LISTED:
        lines.append(f"  and {len(judged) - _LISTED} more, in the JSON")
    return lines


def _gate_lines(found: Found) -> list[str]:
    threshold = found.asked.threshold
    if threshold is None:
        return []
    much = f"{abs(found.loss):.2f} {'below' if found.loss > 0 else 'above'} the original's"
    word = "passes" if found.passed else "does not pass"
    lines = [f"ROUGE-1 is {much}, {threshold:g} below is allowed: the engine {word}."]
    if found.needed is not None:
        lines.append(f"So few articles seldom show a loss of {threshold:g}: about {found.needed} would.")
    return lines


def _keep(args: argparse.Namespace, sides: Sides, found: Found, shown: dict[str, Any], out: Output) -> None:
    """Keep figures and texts in the folder asked for, or in the engine's if that can be written."""
    from allotrope.artifact import results

    engine, samples = sides.opened.engine, found.samples()
    folder = args.out or engine.path
    try:
        results.keep(folder, "summarize", shown, engine, sides.device, args.command, samples)
        with (folder / TABLE).open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "reference", "engine", "original", "rouge1_engine", "rouge1_original"))
            for one in samples:
                scores = (one["rouge"][side]["rouge1"] for side in ("engine", "original"))
                writer.writerow((one["id"], one["reference"], one["engine"], one["original"], *scores))
    except OSError as error:
        if args.out is not None:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        out.line(f"(not kept: {folder} cannot be written; name another folder with -o)")
        return
    out.line(f"side by side: {folder / TABLE}")
