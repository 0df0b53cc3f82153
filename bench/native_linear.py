"""How near the native linear layers come to what the machine can do: `python bench/native_linear.py [SHAPE …]`.

For each shape IN,OUT, format and number of rows: the time of a call, the weight's bytes a second beside the read
bandwidth, and products and sums a second beside the rate of matrix products (`doctor --measure` has both). Calls go
through enough weights that no cache holds them; the median of several rounds counts, formats taking turns in each.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from allotrope import native
from allotrope.commands.output import Output, time_text
from allotrope.hw import detect, peaks
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Problem, Role
from allotrope.ops.linear_codes import PER_BYTE
from allotrope.ops.tactic import Tactic

SHAPES = ("1024,4096", "4096,1024", "2048,5888", "768,768", "288,768")
BEYOND = 256 * 2**20  # bytes of weights that are gone through
FORMATS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "fp32": ("linear", {}, None),
    "fp16": ("linear_stored", {"store": "fp16"}, None),
    "bf16": ("linear_stored", {"store": "bf16"}, None),
    "int8": ("linear_codes", {"format": "int8", "activations": "none"}, None),
    "int8 × int8": ("linear_codes", {"format": "int8", "activations": "int8"}, None),
    "int4 by 32": ("linear_codes", {"format": "int4", "activations": "none"}, 32),
    "int4 by 32 × int8": ("linear_codes", {"format": "int4", "activations": "int8"}, 32),
    "int4 by 128 × int8": ("linear_codes", {"format": "int4", "activations": "int8"}, 128),
}


@dataclass(frozen=True)
class Subject:
    """A problem, its native tactic, its inputs, and copies of its weights one after the other."""

    name: str
    problem: Problem
    tactic: Tactic
    step: dict[str, Any]
    weights: list[dict[str, Any]]
    out: dict[str, torch.Tensor]
    workspace: torch.Tensor | None

    def calls(self) -> Iterator[Callable[[], None]]:
        """A call for each copy."""
        params = registry.contract(self.problem.op).complete(self.problem.params)
        for copy in self.weights:
            yield lambda ins={**self.step, **copy}: self.tactic.run(self.out, ins, params, self.workspace)

    @property
    def nbytes(self) -> int:
        """Of one copy as it is packed."""
        return sum(value.numel() * value.element_size() for value in self.weights[0].values())

    @property
    def flops(self) -> int:
        """Products and sums of a call."""
        axes = self.problem.axes
        return 2 * axes["rows"] * axes["in"] * axes["out"]


def main() -> None:
    """Measure, and print a table per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES, metavar="IN,OUT")
    parser.add_argument("--rows", default="1,8,512")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    device, out = detect.detect("cpu"), Output()
    if native.why_not():
        raise SystemExit(native.why_not())
    ceilings = peaks.load(device) or peaks.measure(device)
    reads = f"reads {ceilings.read_bytes_per_s / 1e9:.1f} GB/s"
    out.line(f"{device.name}, {native.find().isa}, {native.threads()} threads, {reads}")
    for shape in args.shapes:
        into, outs = map(int, shape.split(","))
        rows = []
        for count in map(int, args.rows.split(",")):
            made = [subject(name, count, into, outs) for name in FORMATS if into % (FORMATS[name][2] or 1) == 0]
            times = timed(made, args.rounds)
            rows += [row(one, times[one.name], ceilings) for one in made]
        out.line(f"{into} → {outs}")
        out.table(("rows", "format", "a call", "GB/s", "of reading", "GOP/s", "of products"), rows)


def subject(name: str, rows: int, into: int, outs: int) -> Subject:
    """Weights of real spread, in as many copies as it takes to leave every cache."""
    op, params, group = FORMATS[name]
    axes = {"rows": rows, "in": into, "out": outs}
    if op == "linear_codes":
        axes |= {"packed": into // PER_BYTE[params["format"]], "groups": into // group if group else 1}
    problem = Problem(op, axes, params, "fp32")
    device, contract = detect.detect("cpu"), registry.contract(op)
    [tactic] = [
        tactic
        for tactic in registry.tactics(op)
        if tactic.name.startswith("native") and tactic.why_not(problem, device) is None
    ]
    ins = check.rounded(contract, problem, contract.make_inputs(problem, 0))
    packed = {
        name: poison.packed(value, tactic.packings()[name])
        for name, value in ins.items()
        if contract.ins[name].role is Role.WEIGHT
    }
    size = sum(value.numel() * value.element_size() for value in packed.values())
    copies = max(2, math.ceil(BEYOND / size)) if rows < 64 else 2
    room = tactic.workspace(problem, device)
    return Subject(
        name,
        problem,
        tactic,
        {"x": ins["x"]},
        [{key: value.clone() for key, value in packed.items()} for _ in range(copies)],
        {"out": torch.empty(rows, outs)},
        torch.empty(room, dtype=torch.uint8) if room else None,
    )


def timed(made: list[Subject], rounds: int) -> dict[str, float]:
    """Seconds of a call: the median of the rounds."""
    found: dict[str, list[float]] = {one.name: [] for one in made}
    for _ in range(rounds):
        for one in made:
            begin = perf_counter()
            for call in one.calls():
                call()
            found[one.name].append((perf_counter() - begin) / len(one.weights))
    return {name: statistics.median(times) for name, times in found.items()}


def row(one: Subject, seconds: float, ceilings: peaks.Ceilings) -> tuple[str, ...]:
    """A line of the table."""
    rate = ceilings.rate(peaks.INT8 if one.name.endswith("× int8") else "fp32")
    return (
        str(one.problem.axes["rows"]),
        one.name,
        time_text(seconds),
        f"{one.nbytes / seconds / 1e9:.1f}",
        f"{one.nbytes / seconds / ceilings.read_bytes_per_s:.0%}",
        f"{one.flops / seconds / 1e9:.0f}",
        f"{one.flops / seconds / rate:.0%}",
    )


if __name__ == "__main__":
    main()
