"""What an explanation's clocks cost: `python bench/clocks.py ENGINE …`.

Three ways to run the same answers take turns: without clocks, with the executor's own, with all of explain's. One
thread, processor time; a way's cost is the median of its triples' ratios to the run without, with quartiles.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path

import numpy as np

from allotrope.commands.output import Output
from allotrope.explain.drive import Asked, answer
from allotrope.explain.notes import Notes
from allotrope.explain.watch import WatchedLoop
from allotrope.runtime.opening import Opened, open_folder
from allotrope.runtime.options import RuntimeOptions

WAYS = ("off", "executor", "explain")


def main() -> None:
    """Measure, one line per engine and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--io", default="16,48", help="prompt and output length")
    parser.add_argument("--triples", type=int, default=150)
    args = parser.parse_args()
    into, output = map(int, args.io.split(","))
    rows = [row for folder in args.engines for row in measure(folder, Asked(1, into, output), args.triples)]
    Output().table(("engine", "way", "a step", "cost", "quartiles", "more a step"), rows)


def measure(folder: Path, asked: Asked, triples: int) -> list[tuple[str, ...]]:
    """The engine's lines."""
    options = RuntimeOptions(threads=1, max_num_seqs=2, max_len=asked.into + asked.output)
    plain, timed = open_folder(folder, options), open_folder(folder, options, timed=True)
    random, seen = np.random.default_rng(0), {way: list[float]() for way in WAYS}
    for triple in range(-3, triples):
        for turn in range(3):
            way = WAYS[(turn + triple) % 3]
            took = one(way, timed if way != "off" else plain, asked, random)
            if triple >= 0:
                seen[way].append(took)
    base, rows = np.array(seen["off"]), []
    for way in WAYS:
        low, middle, high = (100 * (np.quantile(np.array(seen[way]) / base, q) - 1) for q in (0.25, 0.5, 0.75))
        step = statistics.median(seen[way]) / asked.output
        more = float(np.median(np.array(seen[way]) - base)) / asked.output
        cost = (f"{middle:+.2f} %", f"{low:+.2f} to {high:+.2f}", f"{1e6 * more:+.2f} µs")
        rows.append((folder.name, way, f"{1e6 * step:.1f} µs", *(cost if way != "off" else ("", "", ""))))
    return rows


def one(way: str, opened: Opened, asked: Asked, random: np.random.Generator) -> float:
    """Processor seconds of one run. Rubbish is collected before it, and clocks are read after it."""
    gc.collect()
    notes = Notes()
    loop = WatchedLoop(opened, notes) if way == "explain" else opened.loop
    now = notes.now if way == "explain" else lambda name: None
    began = time.process_time()
    answer(opened, loop, asked, random, now)
    return time.process_time() - began


if __name__ == "__main__":
    main()
