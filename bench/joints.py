"""What it saves to compute calls together (allotrope/runtime/joints.py): `python bench/joints.py ENGINE`.

Two executors of one native engine in one process: one computes every call by itself, the other as it always does. They
decode the same requests, some steps at a time in turns; for each number of rows the median of the steps' times in each
turn, and the median and spread over turns of how many times faster the second was. Tokens must be equal.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from allotrope.artifact.engine import open_engine
from allotrope.bench.workload import exactly
from allotrope.commands.output import Output, time_text
from allotrope.hw.detect import detect
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.request import Limits, Request, new_request
from allotrope.runtime.scheduler import Scheduler

PROMPT, STEPS, PAGE = 64, 12, 16  # tokens of a prompt, steps of a turn, tokens of a page


@dataclass
class Side:
    """One executor and the requests that it decodes."""

    runner: NativeExecutor
    rows: int
    length: int
    vocab: int
    turns: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.runner.pages, PAGE, self.rows, self.rows * PROMPT, self.length)
        limits = Limits(self.vocab, self.length)
        self.requests: list[Request] = []
        for i in range(self.rows):
            prompt = [(7 * i + 3 * at) % (self.vocab - 3) + 3 for at in range(PROMPT)]
            self.requests.append(new_request(i, prompt, exactly(self.length - PROMPT), limits))
            self.scheduler.submit(self.requests[-1])
        self.step()

    def step(self) -> float:
        """Compute one, and give its seconds."""
        step = self.scheduler.plan_step()
        if step is None:
            raise RuntimeError("nothing is left to compute")
        began = perf_counter()
        output = self.runner.run(step)
        took = perf_counter() - began
        self.scheduler.commit(output)
        return took

    def turn(self) -> None:
        """Some steps, whose median is kept."""
        self.turns.append(statistics.median(self.step() for _ in range(STEPS)))


def main() -> None:
    """Measure, and print a line per number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--rows", default="1,2,8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=40)
    args = parser.parse_args()
    engine, device, out = open_engine(args.engine), detect("cpu"), Output()
    lines = []
    for rows in map(int, args.rows.split(",")):
        length = min(PROMPT + STEPS * (args.turns + 4), engine.manifest.limits["max_len"])
        turns = (length - PROMPT) // STEPS - 1
        if turns < 2:
            raise SystemExit(f"the engine's length is {length}; {PROMPT + 3 * STEPS} tokens are needed")
        sides = []
        for plain in (True, False):
            pages = rows * -(-length // PAGE)
            runner = NativeExecutor(
                engine,
                device=device,
                pages=pages,
                page_size=PAGE,
                max_tokens=rows * PROMPT,
                max_requests=rows,
                threads=args.threads,
                plain=plain,
            )
            sides.append(Side(runner, rows, length, engine.manifest.plan.vocab))
        for i in range(turns):
            for side in sides[:: 1 - 2 * (i % 2)]:
                side.turn()
        if [one.tokens for one in sides[0].requests] != [one.tokens for one in sides[1].requests]:
            raise SystemExit(f"{rows} rows: the tokens differ")
        ratios = sorted(a / b for a, b in zip(sides[0].turns, sides[1].turns, strict=True))
        quarter = len(ratios) // 4
        apart, joint = (statistics.median(side.turns) for side in sides)
        spread = f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
        lines.append((f"{rows}", time_text(apart), time_text(joint), f"{statistics.median(ratios):.3f}", spread))
        for side in sides:
            side.runner.close()
    out.table(("rows", "each by itself", "together", "times", "middle half of turns"), lines)


if __name__ == "__main__":
    main()
