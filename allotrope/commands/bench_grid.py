"""`allotrope bench` over a grid: latency, speed and memory of each cell, peers in the same run."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope import settings
from allotrope.bench.catalogue import PRECISIONS
from allotrope.commands import build as building
from allotrope.commands import generation
from allotrope.commands.output import Output, time_text
from allotrope.errors import UsageError
from allotrope.units import bytes_text

if TYPE_CHECKING:
    from allotrope.bench.comparison import Comparison, Question

_OPTIONS = ("batch", "io", "cell", "against", "peer_format", "repeat", "warmup", "resume", "prepare", "original")
_MOST = {"repeat": (1, 1000), "warmup": (0, 1000), "beams": (1, 16)}
_REPEAT, _WARMUP = 5, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the grid."""
    group = parser.add_argument_group("grid")
    group.add_argument("--batch", metavar="N,…", help="prompts at a time (1,8)")
    group.add_argument("--io", nargs="+", metavar="IN,OUT", help="tokens in and out (64,20 128,120)")
    group.add_argument("--cell", nargs="+", metavar="B:IN,OUT", help="single cells, after these or instead of them")
    group.add_argument("--beams", type=int, metavar="N", help="search with N beams (1: do not)")
    group.add_argument("--repeat", type=int, metavar="N", help=f"turns per cell that count ({_REPEAT})")
    group.add_argument("--warmup", type=int, metavar="N", help=f"short goes before, per cell ({_WARMUP})")
    group.add_argument(
        "--against", metavar="PEER,…", help="hf, hf-compiled, llama.cpp, ctranslate2, openvino, onnxruntime, vllm"
    )
    group.add_argument("--peer-format", choices=PRECISIONS, help="bits of the peers' weights (ENGINE's)")
    group.add_argument("--peers", type=Path, metavar="DIR", help="where their environments are (ALLOTROPE_PEERS)")
    group.add_argument("--original", metavar="CKPT", help="what to convert for them (ENGINE's source)")
    group.add_argument("--prepare", action="store_true", help="build and convert what is needed, and stop")
    group.add_argument("--resume", action="store_true", help="go on with the samples of a run that was stopped")


def first_given(args: argparse.Namespace) -> str | None:
    """An option of the grid that was given."""
    names = (*_OPTIONS, "beams", "peers")
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(args, name) not in (None, False)), None)


def run(args: argparse.Namespace, out: Output) -> int:
    """Measure, print and keep."""
    from allotrope.artifact.engine import open_engine
    from allotrope.bench.comparison import Comparison
    from allotrope.bench.workers import WorkerFailed
    from allotrope.hw import detect, peaks

    asked = _question(args)
    engine = open_engine(building.engine_folder(args, out, running=("max_len",)))
    device = detect.detect(engine.manifest.device["kind"] if args.device == "auto" else args.device)
    folder, kept = _folder(args.out, engine.path, out)
    comparison = Comparison(engine, device, asked, folder, out.sentence)
    for skipped in comparison.skipped:
        cell = f"batch {skipped['batch']}, {skipped['input']} in, {skipped['output']} out"
        out.sentence(f"skipped: {cell}: {skipped['reason']}")
    if comparison.journal.found:
        out.line(f"going on with {comparison.journal.found} samples of an earlier run")
    comparison.prepare()
    if args.prepare:
        return _prepared(comparison, out)
    try:
        with out.progress(comparison.turns, "measuring") as bar:
            turns = comparison.measure(bar.advance)
    except (KeyboardInterrupt, WorkerFailed):
        out.sentence("What was measured is kept: with --resume the same command goes on.")
        raise
    ceilings = peaks.load(device)
    shown = comparison.results(turns, ceilings)
    _print(shown, out)
    if ceilings is None:
        out.line("The limit is not known here: run allotrope doctor --measure")
    if kept:
        _keep(folder, comparison, shown, comparison.raw(turns), args.command, out)
    comparison.journal.forget()
    out.result(shown)
    return 0


def _question(args: argparse.Namespace) -> Question:
    """All that can be wrong is said before anything is built."""
    from allotrope.bench import catalogue, grid
    from allotrope.bench.comparison import Question
    from allotrope.hw import cores

    numbers = {"repeat": _REPEAT, "warmup": _WARMUP, "beams": 1}
    for name, (least, most) in _MOST.items():
        if (value := getattr(args, name)) is not None:
            numbers[name] = value
        if not least <= numbers[name] <= most:
            raise UsageError(f"--{name} is {numbers[name]}; it must be from {least} to {most}")
    if not args.against and (
        given := next((n for n in ("peer_format", "peers", "original") if getattr(args, n)), None)
    ):
        raise UsageError(f"--{given.replace('_', '-')} is for peers, and there are none", remedy="name some: --against")
    options = generation.runtime_options(args)  # their own bounds
    threads = options.threads or settings.threads() or cores.usable().count
    usual = {field.name: field.default for field in dataclasses.fields(options)}
    own = ("device", "threads", "max_num_seqs", "max_len")  # settled by the grid
    running = {name: value for name, value in vars(options).items() if value != usual[name] and name not in own}
    return Question(
        cells=grid.cells(args.batch, args.io, args.cell),
        peers=catalogue.named(args.against) if args.against else (),
        environments=args.peers or catalogue.default_environments(),
        threads=threads,
        seed=args.seed,
        precision=args.peer_format,
        running=running,
        original=args.original,
        resume=args.resume,
        **numbers,
    )


def _folder(asked: Path | None, engine: Path, out: Output) -> tuple[Path, bool]:
    """Where results and the journal go, and whether they can be kept for good."""
    from allotrope.artifact import results

    if asked is not None:
        results.make_folder(asked)
        return asked, True
    try:
        results.make_folder(engine)
    except UsageError:
        out.line(f"(nothing will be kept: {engine} cannot be written; name another folder with -o)")
        spare = settings.cache_dir() / "bench"
        spare.mkdir(parents=True, exist_ok=True)
        return spare, False
    return engine, True


def _prepared(comparison: Comparison, out: Output) -> int:
    rows = [(one.name, one.reason or "ready") for one in comparison.peers]
    for name, state in rows:
        out.sentence(f"{name}: {state}")
    if not comparison.journal.found:
        comparison.journal.forget()
    shown = {name: {"reason_absent": None if state == "ready" else state} for name, state in rows}
    out.result({"cells": [], "skipped": comparison.skipped, "peers": shown})
    return 0


def _print(shown: Mapping[str, Any], out: Output) -> None:
    from allotrope.bench import tables

    for title, rows in tables.terminal(shown):
        out.line()
        out.line(title)
        out.table(tables.HEADERS, rows)
    out.line()
    for line in tables.notes(shown):
        out.sentence(line)
    engine = shown["engine"]
    built = f", built in {time_text(engine['build_s'])}" if engine["build_s"] else ""
    out.sentence(
        f"engine: {bytes_text(engine['bytes'])}{built}, loaded in {time_text(engine['load_s'])}, "
        f"first token after {time_text(engine['first_token_s'])}"
    )


def _keep(
    folder: Path, comparison: Comparison, shown: Mapping[str, Any], samples: Any, command: str, out: Output
) -> None:
    from allotrope.artifact import results
    from allotrope.bench import keep, tables

    found_with = {
        "environment": results.environment(comparison.device, comparison.engine),
        **results.stamp(comparison.engine.path, command),
        "samples": samples,
    }
    path = keep.keep_all(folder, {**shown, **found_with})
    model = str(comparison.engine.manifest.source["path"])
    tables.write_csv(folder / "bench.csv", model, comparison.engine.manifest.plan, shown)
    tables.write_markdown(folder / "bench.md", model, shown)
    out.line(f"every sample: {path}")
