"""The engine beside every peer on a CPU, shape by shape and precision by precision: `python bench/cpu_table.py`.

Each line of the table is one `allotrope bench --against …`: three cells (decode and prefill of one prompt, decode of
eight), everybody in turns. Finished lines go to `bench/results/cpu-table.jsonl` with environment and every sample and
are not measured again (`--again`); one that was stopped goes on where it was. `--prepare` only builds the engines and
converts the checkpoints, so that the measuring can be alone on the machine; `--show` prints every machine's last
lines. Below the figures stands what they are to be: the bounds of the project's goals. A line is finished where it was
measured on this kind of machine, with this core, beside all peers that are asked for. All of it leaves 52 GB in
`--cache-dir`, of which DeciCoder-1B's engines and conversions are 38.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from allotrope import settings
from allotrope.bench import catalogue
from allotrope.commands.output import Output
from allotrope.hw import cores
from allotrope.hw.detect import detect
from allotrope.native import identity

RESULTS = Path(__file__).parent / "results" / "cpu-table.jsonl"
_BUSY = 0.15  # of a core that others had
SHAPES = ("llama-15m", "galactica-125m", "gpt2-350m", "decicoder-1b")
PRECISIONS = ("8", "4", "16", "fp32")
PEERS = "llama.cpp,ctranslate2,openvino,onnxruntime,hf,hf-compiled"
NEAREST = ("--method", "nearest", "--without", "smooth")  # random weights: there is nothing to calibrate for
CODED = ("--activations", "int8", "--head", "int8", *NEAREST)
HALVES = ("--kv", "fp16")  # as llama.cpp keeps keys and values; OpenVINO takes 8 bits, the others fp32
BUILD = {
    "fp32": (),
    "16": ("--weights", "fp16", "--dtype", "fp32", "--head", "fp16", *HALVES),
    "8": ("--weights", "int8", *CODED, *HALVES),
    "4": ("--weights", "int4", *CODED, *HALVES),
}
GROUP, GROUPS = "128", {"llama-15m": "32"}  # whose rows are 288 wide
DECODE, PREFILL, MANY = (1, 64, 64), (1, 512, 1), (8, 64, 32)
CELLS = tuple(f"{batch}:{into},{out}" for batch, into, out in (DECODE, PREFILL, MANY))


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="%(default)s")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="%(default)s")
    parser.add_argument("--against", default=PEERS, help="%(default)s")
    parser.add_argument("--peers", type=Path, help="where their environments are")
    parser.add_argument(
        "--work", type=Path, default=Path("cpu-table"), help="where runs keep their samples (%(default)s)"
    )
    parser.add_argument("--cache-dir", type=Path, help="where engines and conversions are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="turns per cell (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (all)")
    parser.add_argument("--build", default="", help="more options of building, in one word")
    parser.add_argument("--prepare", action="store_true", help="build and convert, measure nothing")
    parser.add_argument("--again", action="store_true", help="measure finished lines anew")
    parser.add_argument("--show", action="store_true", help="print the table only")
    args = parser.parse_args()
    failed = False
    for shape in () if args.show else args.shapes.split(","):
        for precision in args.precisions.split(","):
            if args.prepare or args.again or not done(kept(args.results), shape, precision, args.against, args.threads):
                failed |= not measure(args, shape, precision)
    out = Output()
    for machine, lines in machines(kept(args.results)).items():
        out.line(f"\n{machine}")
        table(lines, out)
    sys.exit(failed)


Line = dict[str, Any]


def kept(path: Path) -> list[Line]:
    """Every line that was ever measured, oldest first."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off while it was written
            sys.stderr.write(f"{path}: line {number} is no result, and is left out\n")
    return found


def machine(line: Line) -> str:
    """The kind of machine that a line is of: figures of two kinds say nothing about each other."""
    device, threads = line["environment"]["device"], line["options"]["threads"]
    return f"{device['name']}, {threads} threads on {device['cores']} cores, {' '.join(device['features'])}"


def machines(lines: list[Line]) -> dict[str, list[Line]]:
    """By kind of machine, the line of each shape and precision: the last of those beside the most peers."""
    found: dict[str, dict[tuple[str, str], Line]] = {}
    for line in lines:
        of = found.setdefault(machine(line), {})
        before = of.get(key := (line["shape"], line["precision"]))
        if before is None or len(beside(line)) >= len(beside(before)):
            of[key] = line
    order = {(shape, precision): i for i, (shape, precision) in enumerate(product(SHAPES, PRECISIONS))}
    return {
        name: sorted(of.values(), key=lambda line: order.get((line["shape"], line["precision"]), len(order)))
        for name, of in found.items()
    }


def beside(line: Line) -> set[str]:
    """The peers that a line was measured beside, or that cannot be, by what they are or by how they ended."""
    return {one.get("peer", name) for name, one in line["peers"].items() if one.get("absent") != "not installed"}


def able(against: str, precision: str) -> set[str]:
    """Those of a list of peers that have such weights at all."""
    return {peer.name for peer in catalogue.named(against) if precision in peer.forms}


def done(lines: list[Line], shape: str, precision: str, against: str, threads: int | None) -> bool:
    """Whether there is a line of this, measured on such a machine with this core beside all that are asked for."""
    asked = threads or settings.threads() or cores.usable().count
    here = machine({"environment": {"device": asdict(detect("cpu"))}, "options": {"threads": asked}})
    return any(
        (line["shape"], line["precision"]) == (shape, precision)
        and machine(line) == here
        and line["environment"].get("core") == identity()
        and able(against, precision) <= beside(line)
        for line in lines
    )


def measure(args: argparse.Namespace, shape: str, precision: str) -> bool:
    """One shape in one precision through the command line; whether that went well."""
    folder = args.work / f"{shape}-{precision}"
    group = ("--group-size", GROUPS.get(shape, GROUP)) if precision == "4" else ()
    options = [*BUILD[precision], *group, *args.build.split()]
    command = [sys.executable, "-m", "allotrope", "bench", f"random:{shape}", *options, "--cell", *CELLS]
    command += ["--against", args.against, "--peer-format", precision, "--repeat", str(args.repeat), "-o", str(folder)]
    for name in ("peers", "cache_dir", "threads"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--prepare"] if args.prepare else ["--resume"]
    sys.stdout.write(f"── {shape}, {precision}\n")
    sys.stdout.flush()
    began = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    sys.stdout.write(f"{shape}, {precision}: {time.monotonic() - began:.0f} s\n")
    if code or args.prepare:
        return code == 0
    found = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    for name in ("work", "peers", "cache_dir"):  # where this machine keeps them is of no use to another
        if (value := getattr(args, name)) is not None and value.is_absolute():
            found["command"] = found["command"].replace(str(value), name.replace("_", "-"))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"shape": shape, "precision": precision, **found}) + "\n")
    return True


def table(lines: list[Line], out: Output) -> None:
    """Every bound beside what was measured."""
    rows = [row for line in lines for row in bounds(line)]
    out.table(("shape", "bits", "what", "ours", "best peer", "", "×", "limit", "must", ""), rows)
    asked = [row[-1] for row in rows if row[-1]]  # a rate that no bound is for stands there to be seen
    held = f"{len(asked) - asked.count('NO')} of {len(asked)} bounds hold"
    out.line(
        f"{held}, {asked.count('limit')} of them by the limit alone; {len(lines)} of {len(BUILD) * len(SHAPES)} lines"
    )
    of_core = [str((line["environment"].get("core") or {}).get("digest", "unknown"))[:8] for line in lines]
    if len(set(of_core)) > 1:
        told = (f"{core} {of_core.count(core)}" for core in dict.fromkeys(of_core))
        out.sentence(f"lines by the core that they were measured with: {', '.join(told)}")
    for line in lines:
        for remark in remarks(line):
            out.sentence(f"{line['shape']}, {line['precision']}: {remark}")


def remarks(line: Line) -> Iterator[str]:
    """What whoever reads a line's figures must know: who is missing, and who was disturbed."""
    if missing := able(PEERS, line["precision"]) - beside(line):
        yield f"not beside {', '.join(sorted(missing))}"
    for name, one in line["peers"].items():
        if one.get("absent") == "failed":
            yield f"{name} is not there: {one['reason_absent']}"
    for cell in line["cells"]:
        for name, one in cell["peers"].items():
            if one.get("reason_absent") and not line["peers"][name]["reason_absent"]:
                yield f"{name} is not there at {cell['batch']}:{cell['input']},{cell['output']}: {one['reason_absent']}"
    disturbed = {
        name
        for cell in line["cells"]
        for name, one in {"allotrope": cell, **cell["peers"]}.items()
        if (one["foreign"] or 0) > _BUSY
    }
    if disturbed:
        yield f"others had the machine, too, while these were measured: {', '.join(sorted(disturbed))}"


def bounds(line: Line) -> Iterator[tuple[str, ...]]:
    """What is asked of one shape in one precision."""
    cells = {(cell["batch"], cell["input"], cell["output"]): cell for cell in line["cells"]}
    precision, quantised = line["precision"], line["precision"] in ("8", "4")
    least = {"8": 1.15, "4": 1.3, "16": 1.15, "fp32": 0.97}[precision]
    limit = 0.88 if precision in ("8", "16") else None
    yield compared(line, cells[DECODE], "decode", least, limit)
    yield compared(line, cells[PREFILL], "prefill", 1.0 if quantised else None, None)
    yield compared(line, cells[MANY], "decode", 1.1 if quantised else None, None, "decode of 8")
    head = (line["shape"], precision)
    if precision == "8":
        first = line["engine"]["first_token_s"]
        yield *head, "first token", f"{first:.2f} s", "", "", "", "", "0.3 s", _holds(first <= 0.3)
    peak = max(cell["peak_memory_bytes"] for cell in line["cells"])
    room = 1.15 * line["engine"]["bytes"] + line["engine"].get("kv_pool_bytes", 0) + 120e6
    lean, name = leanest(line)
    holds = _holds(peak <= room and (lean is None or peak < lean))
    least_text = "" if lean is None else f"{lean / 1e6:.0f}"
    yield *head, "memory, MB", f"{peak / 1e6:.0f}", name, least_text, "", "", f"{room / 1e6:.0f}", holds


def compared(
    line: Line, cell: dict[str, Any], rate: str, least: float | None, limit: float | None, what: str = ""
) -> tuple[str, ...]:
    """A rate beside the best peer's; where the limit's share is enough, that is enough.

    Peers that say something else (`!`) count here, too: random weights in 4 bits say nothing, so that every two
    roundings of them part at once, and to leave out whoever is faster would be too easy.
    """
    key, share = f"{rate}_tokens_per_s", share_of_limit(line, cell, rate)
    ratios = {name: against(cell, name, rate) for name, found in cell["peers"].items() if found[key] is not None}
    name, ours = min(ratios, key=ratios.__getitem__, default=None), cell[key]
    theirs, ratio = (None, None) if name is None else (cell["peers"][name][key], ratios[name])
    ahead = ratio is not None and least is not None and ratio >= least
    held = "yes" if ahead else "limit" if limit is not None and (share or 0) >= limit else "NO"
    wanted = "" if least is None else f"{least:.2f}" + ("" if limit is None else f" or {limit:.0%}")
    return (
        line["shape"],
        line["precision"],
        what or rate,
        f"{ours:.4g}",
        "none" if name is None else name + " !" * cell["peers"][name]["different"],
        "" if theirs is None else f"{theirs:.4g}",
        "" if ratio is None else f"{ratio:.3f}",
        "" if share is None else f"{share:.0%}",
        wanted,
        "" if least is None else held,
    )


def against(cell: dict[str, Any], name: str, rate: str) -> float:
    """How many times as fast the engine was, in the turns that it took with this peer where they are kept apart."""
    found = cell["peers"][name]
    ratios = found.get("ratios") or {rate: cell[f"{rate}_tokens_per_s"] / found[f"{rate}_tokens_per_s"]}
    return float(ratios[rate])


def share_of_limit(line: Line, cell: dict[str, Any], rate: str) -> float | None:
    """The share of the limit; of decoding, beside the best that memory gave in any of the cell's turns.

    Memory swings by the second here, and a median of other seconds than the tokens' made shares beyond one.
    """
    share, read = cell["shares"][rate], cell.get("read_bytes_per_s")
    if share is None or read is None or rate != "decode":
        return None if share is None else float(share)
    place = (cell["batch"], cell["input"], cell["output"])
    turns = (one for one in line["samples"] if (one["batch"], one["input"], one["output"]) == place)
    return float(share * read / max(one.get("read_bytes_per_s") or 0 for one in turns))


def leanest(line: Line) -> tuple[float | None, str]:
    """The peer with the least memory over all cells, among those that ran them all."""
    peaks = {}
    for name in line["peers"]:
        seen = [cell["peers"][name]["peak_memory_bytes"] for cell in line["cells"]]
        if None not in seen:
            peaks[name] = max(seen)
    name = min(peaks, key=peaks.__getitem__, default="")
    return peaks.get(name), name


def _holds(good: bool) -> str:
    return "yes" if good else "NO"


if __name__ == "__main__":
    main()
