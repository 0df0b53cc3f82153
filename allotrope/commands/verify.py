"""`allotrope verify`: is it still the same model, and if not, where does it differ?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from allotrope.commands import build as building
from allotrope.commands.output import Output
from allotrope.errors import UsageError

if TYPE_CHECKING:
    from allotrope.verify.records import Attribution
    from allotrope.verify.session import Result

WORK = "verifying"
HELP = (
    "The verdict: identical, within rounding, close or degraded. Compares an engine\n"
    "with the original in transformers, on the same tokens, and keeps the result in\n"
    "the engine's folder as verify.json. Exits 3 when the verdict is not enough.\n"
    "Of a quantised engine two answers: whether it computes what its own weights\n"
    "say, and what these cost beside the original. --attribute says which module\n"
    "costs how much, and what widening it would buy back."
)
WORDS = ("identical", "within rounding", "close", "degraded")
LEVELS = "preflight,layers,logits,tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument(
        "--original", metavar="CKPT", help="compare with this, or with an engine's source (ENGINE's own)"
    )
    parser.add_argument("--level", default=LEVELS, metavar="LEVEL,…", help=f"what to ask ({LEVELS})")
    parser.add_argument("--locate", action="store_true", help="look at every op of every block")
    parser.add_argument(
        "--require",
        choices=WORDS,
        metavar="WORD",
        help="the least good verdict (fp32: identical; 16 bit: within rounding; quantised: close)",
    )
    parser.add_argument(
        "--attribute", action="store_true", help="swap quantised modules one at a time: each one's share of the KL"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt per line; [1, 2, 3] are token ids")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="greedy tokens per prompt (32)")
    group = parser.add_argument_group("building, if ENGINE is a checkpoint; --threads and --allow-pickle always count")
    building.add_build_options(group)


def run(args: argparse.Namespace, out: Output) -> int:
    """Verify and print; 3 when the verdict is below what is required."""
    from allotrope.verify.session import Question, verify
    from allotrope.verify.verdict import PROVING

    asked = Question(
        original=args.original,
        levels=tuple(level.strip() for level in args.level.split(",")),
        locate=args.locate,
        prompts=args.prompts,
        new_tokens=args.new_tokens,
        attribute=args.attribute,
        require=args.require,
        seed=args.seed,
        device=args.device,
        allow_pickle=args.allow_pickle,
        threads=args.threads,
    )
    if args.require and not set(PROVING) <= set(asked.levels):
        raise UsageError(f"--require needs the levels {', '.join(PROVING)}", remedy="leave --level out")
    folder = _engine(args, out)
    quantised = _quantised(folder)
    if args.require and quantised and "logits" not in asked.levels:
        raise UsageError("--require needs the level logits: it says what the formats cost", remedy="leave --level out")
    with out.progress(len(asked.levels) + quantised, "verifying") as shown:
        result = verify(folder, asked, lambda _: shown.advance(), out.progress, command=args.command)
    _print(result, out)
    if not result.kept:
        out.line(f"(not kept: {folder} cannot be written)")
    if not result.passed:
        out.line(f"Required: {result.required}. The engine does not pass.")
    out.result({"engine": str(folder), **result.to_json()})
    return 0 if result.passed else 3


def _print_attribution(found: Attribution, out: Output) -> None:
    from allotrope.verify import text

    for line in text.attribution_lines(found):
        out.line(line)
    if found.blocks:
        out.table(("block", *text.ATTRIBUTION_HEADERS[1:]), text.attribution_rows(found.blocks))
    out.table(text.ATTRIBUTION_HEADERS, text.attribution_rows(found.modules))
    for line in text.widening_lines(found):
        out.line(line)


def _engine(args: argparse.Namespace, out: Output) -> Path:
    """The engine's folder; a checkpoint in its place is built first, and kept."""
    from allotrope.artifact import manifest

    built = (Path(args.engine) / manifest.FILE).exists()  # then --allow-pickle is for reading the original
    return building.engine_folder(args, out, running=("allow_pickle",) if built else ())


def _quantised(folder: Path) -> bool:
    """Whether the engine stores anything in less than it computes in."""
    from allotrope.artifact import manifest
    from allotrope.verify.effective import is_quantised

    return is_quantised(manifest.read(folder).plan)


def _print(result: Result, out: Output) -> None:
    from allotrope.verify import text

    findings = result.findings
    for line in (*text.sentences(result), *text.located_lines(result)):
        out.line(line)
    if findings.attribution is not None:
        _print_attribution(findings.attribution, out)
    if findings.formats:
        out.line("The implementation, beside the original with the engine's own weights:")
    if findings.preflight is not None:
        out.line("preflight:")
        for line in text.preflight_lines(findings.preflight):
            out.line(line)
    if findings.layers is not None:
        out.line(text.layers_line(findings.layers))
        out.table(text.BLOCK_HEADERS, text.block_rows(findings.layers))
    for lines in (
        text.logits_lines(findings.logits) if findings.logits else (),
        text.tokens_lines(findings.tokens) if findings.tokens else (),
    ):
        for line in lines:
            out.line(line)
