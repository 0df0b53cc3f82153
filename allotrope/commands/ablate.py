"""`allotrope ablate`: what each part of an engine buys, in speed, memory and accuracy."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.commands import build as building
from allotrope.commands import generation
from allotrope.commands.output import Output, time_text
from allotrope.errors import UsageError

if TYPE_CHECKING:
    from allotrope.ablate.rows import Row
    from allotrope.ablate.session import Findings, Question
    from allotrope.ablate.setting import Setting
    from allotrope.ablate.speed import Cell

WORK = "ablating"
HELP = (
    "What each part of an engine buys: the engine that `build` makes with these\n"
    "options, with each part taken out, and each part added to the reference plan.\n"
    "All are measured in turn, and compared with the original on the same text.\n"
    "Parts: fusions (all, or qkv, gate_up, … by name), tactics, tuning, attention\n"
    "(or any other op, or OP/TACTIC), step, late-stop, prefix-cache, weights,\n"
    "activations, kv; and formats to add: weights=int4, kv=int8, activations=int8."
)
PRESETS = ("llama-report", "gpt-report")
_IO = {"cpu": "64,32", "cuda": "128,120"}
_GPT_CELLS = {"cpu": ("64,20", "64,60"), "cuda": ("64,20", "128,20", "64,120", "128,120")}
_GPT_BATCHES = {"cpu": "1,8", "cuda": "1,8,16,32,64"}
_LATE = 4  # steps between two looks, where nobody says
_MOST = 1000  # rounds, and cells


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a folder in Hugging Face layout, or random:SHAPE")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="keep ablate.json, .csv and .md there")
    parser.add_argument("--parts", default="", metavar="PART,…", help="these parts only (those that usually matter)")
    parser.add_argument("--preset", choices=PRESETS, help="the LLaMA or the GPT report's table instead")
    parser.add_argument("--io", nargs="+", metavar="IN,OUT", help="tokens in and out (64,32; on a GPU 128,120)")
    parser.add_argument("--batch", metavar="N,…", help="requests at a time (1)")
    parser.add_argument("--rounds", type=int, metavar="N", help="measure each so often (3 to 7, as time allows)")
    parser.add_argument("--text", metavar="FILE", help="a text to compare distributions on (bundled)")
    generation.add_running(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Ablate, print and keep; 130 where it was interrupted and some rows are missing."""
    from allotrope.ablate import keep
    from allotrope.ablate.rows import rows
    from allotrope.ablate.session import Ablation
    from allotrope.artifact import results

    asked = _question(args)
    if args.out is not None:
        results.make_folder(args.out)
    found = Ablation(asked, out.progress, out.sentence).run()
    all_rows = rows(found)
    values = keep.shown(found, all_rows)
    _print(found, all_rows, out)
    _keep(args, found, all_rows, values, out)
    out.result(values)
    return 130 if found.interrupted else 0


def _question(args: argparse.Namespace) -> Question:
    """What the arguments ask, checked before anything is built."""
    from allotrope.ablate import parts
    from allotrope.ablate.session import Question
    from allotrope.artifact.manifest import FILE

    names = tuple(name.strip() for name in args.parts.split(",") if name.strip())
    parts.check(names)
    if names and args.preset:
        raise UsageError("--parts and --preset exclude each other: a preset has its own", remedy="leave one out")
    if args.rounds is not None and not 2 <= args.rounds <= _MOST:
        raise UsageError(f"--rounds is {args.rounds}", remedy=f"give a number from 2 to {_MOST}")
    if args.plan == "reference":
        raise UsageError("--plan reference has no parts to take out", remedy="leave it out")
    if (Path(args.checkpoint) / FILE).is_file():
        remedy = "give the checkpoint that it was built from, and the options it was built with"
        raise UsageError("it is an engine, whose parts cannot be taken out", where=args.checkpoint, remedy=remedy)
    whole, hints = _whole(args)
    return Question(args.checkpoint, whole, hints, _cells(args), names, args.preset, args.rounds, args.text, args.seed)


def _whole(args: argparse.Namespace) -> tuple[Setting, dict[str, Any]]:
    """The engine with all its parts, and what was said about formats that it has not."""
    from allotrope.ablate.parts import OF_WEIGHTS
    from allotrope.ablate.setting import Setting
    from allotrope.build.options import BuildOptions

    usual, running = BuildOptions().to_json(), generation.runtime_options(args)
    given = {name: value for name, value in building.build_options(args).items() if name != "executor"}
    build = {name: value for name, value in given.items() if value not in (usual[name], ())}
    hints = {name: build[name] for name in OF_WEIGHTS if name in build}
    if "weights" not in build and "keep" not in build:
        build = {name: value for name, value in build.items() if name not in hints}
    build |= {"device": args.device}
    options = {name: value for name, value in vars(running).items() if name not in ("max_num_seqs", "max_len")}
    options["check_step"] = _LATE if args.check_step is None else args.check_step
    return Setting(build, options), hints


def _cells(args: argparse.Namespace) -> tuple[Cell, ...]:
    """Every batch with every pair of lengths."""
    from allotrope.ablate.speed import Cell
    from allotrope.hw.detect import detect

    kind = detect(args.device).kind
    gpt = args.preset == "gpt-report"
    pairs = args.io or (_GPT_CELLS[kind] if gpt else (_IO[kind],))
    batches = args.batch or (_GPT_BATCHES[kind] if gpt else "1")
    found = []
    for pair in pairs:
        if not (lengths := re.fullmatch(r"([1-9]\d{0,6}),([1-9]\d{0,6})", pair)):
            raise UsageError(f"--io is {pair[:40]!r}", remedy="give IN,OUT in tokens, as in --io 64,20 128,120")
        for batch in batches.split(","):
            if not re.fullmatch(r"[1-9]\d{0,3}", batch.strip()) or int(batch) > 4096:
                raise UsageError(
                    f"--batch is {batches[:40]!r}", remedy="give numbers from 1 to 4096, as in --batch 1,8"
                )
            found.append(Cell(int(batch), int(lengths[1]), int(lengths[2])))
    if len(found) > _MOST:
        raise UsageError(f"--io and --batch make {len(found)} cells", remedy=f"give at most {_MOST}")
    return tuple(dict.fromkeys(found))


def _print(found: Findings, all_rows: Sequence[Row], out: Output) -> None:
    from allotrope.ablate import words
    from allotrope.ablate.rows import interactions, noise_of

    for place, cell in enumerate(found.asked.cells):
        tables = list(words.speed_tables(all_rows, place))
        if tables:
            out.line(f"{cell.batch} at a time, {cell.input} tokens in, {cell.output} out")
            lines = [line for heading, group in tables for line in (*_heading(heading), *group)]
            columns = len(words.SPEED) - (not found.asked.preset)  # only a preset's rows build on one another
            out.table(words.SPEED[:columns], [line[:columns] for line in lines])
            out.line()
    if found.rounds:
        out.line(words.legend(found.rounds, noise_of(found)))
        out.line()
    if built := words.memory_table(all_rows):
        out.table(words.MEMORY, built)
        out.line(words.BUILDS)
        out.line()
    if found.quality:
        if narrow := words.quality_table(all_rows):
            out.table(words.QUALITY, narrow)
        out.sentence(f"{words.within_line(all_rows)} Judged on {found.positions} positions of {found.text}.")
        out.line()
    told = [*words.notes(all_rows), *words.reasons(all_rows), *map(words.interaction_line, interactions(all_rows))]
    for sentence in told:
        out.sentence(sentence)
    if told:
        out.line()
    out.sentence(words.paragraph(all_rows))
    out.line(f"({'interrupted after' if found.interrupted else 'in'} {time_text(found.seconds)})")


def _heading(text: str) -> list[tuple[str, ...]]:
    return [(text, *[""] * 7)] if text else []


def _keep(
    args: argparse.Namespace, found: Findings, all_rows: Sequence[Row], values: dict[str, Any], out: Output
) -> None:
    """Keep rows and samples in the folder asked for, or beside the engine with all parts if that can be written."""
    from allotrope.ablate import keep, session, speed
    from allotrope.artifact import results
    from allotrope.artifact.engine import open_engine
    from allotrope.hw.detect import detect

    engine = session.engine_of(found)
    if engine is None:
        return
    folder, opened = args.out or engine, open_engine(engine)
    device = detect(str(opened.manifest.device["kind"]))
    samples = speed.raw(list(found.runners.values()))
    try:
        path = results.keep(folder, "ablate", values, opened, device, args.command, samples)
        if args.out is not None:
            keep.keep_csv(folder, values)
            keep.keep_markdown(folder, found, all_rows)
    except OSError as error:
        if args.out is not None:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        out.line(f"(not kept: {folder} cannot be written; name another folder with -o)")
        return
    out.line(f"every sample: {path}")
