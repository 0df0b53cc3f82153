"""`allotrope bench`: how fast an engine is over a grid of batches and lengths, beside its peers; or under a load."""

from __future__ import annotations

import argparse
from pathlib import Path

from allotrope.commands import bench_grid, bench_load, generation
from allotrope.commands.output import Output
from allotrope.errors import UsageError

WORK = "benchmarking"
HELP = (
    "How fast an engine is beside the machine's limit, and beside other runtimes.\n"
    "Over a grid of batch sizes and lengths; or (--load) tokens per second and\n"
    "waiting times of many requests. Prompts are random tokens; answers are greedy\n"
    "and exactly as long as asked for. Figures and every sample are kept in\n"
    "bench.json, the grid's also in bench.csv and bench.md, with -o a load's in\n"
    "load.csv."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to keep what was measured (ENGINE)")
    bench_grid.add_arguments(parser)
    bench_load.add_arguments(parser)
    generation.add_running(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Measure, print and keep."""
    if args.load is not None:
        if given := bench_grid.first_given(args):
            raise UsageError(f"{given} is for the grid, and --load gives a load", remedy="leave one of them out")
        return bench_load.run(args, out)
    if given := bench_load.first_given(args):
        raise UsageError(f"{given} is for a load, and there is none", remedy="give --load N, or leave it out")
    return bench_grid.run(args, out)
