"""`allotrope doctor`: what this machine can do, and what that rests on."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from allotrope import native, settings
from allotrope.commands.output import Output, rate_text
from allotrope.hw import detect, fingerprint, peaks
from allotrope.hw.device import Device
from allotrope.hw.peaks import Ceilings
from allotrope.units import bytes_text

WORK = "looking at the machine"
HELP = "What this machine can do: its device, its measured ceilings, which tactics it\ncan run and why not others."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--measure", action="store_true", help="measure the ceilings anew (seconds) and keep them")
    parser.add_argument("--clear-cache", action="store_true", help="delete kept engines, timings and ceilings first")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads to measure with (all)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Look, measure if asked, and print."""
    if args.clear_cache:
        _clear(out)
    device = detect.detect(args.device)
    if args.threads is not None:
        _set_threads(args.threads)
    ceilings = peaks.measure(device) if args.measure else peaks.load(device)
    kept = bool(args.measure and ceilings and peaks.keep(device, ceilings))
    tactics = _tactics(device)
    _print(device, ceilings, tactics, out)
    core = native.find()
    if args.measure and not kept:
        out.line(f"(could not keep the ceilings in {settings.cache_dir()})")
    out.result(
        {
            "device": {
                "kind": device.kind,
                "name": device.name,
                "arch": device.arch,
                "cores": device.cores,
                "memory_bytes": device.memory_bytes,
                "features": device.features,
            },
            "ceilings": None if ceilings is None else vars(ceilings),
            "native": {
                "isa": core.isa or None,
                "why": core.why,
                "threads": native.threads() if core.isa else None,
                "why_threads": native.why_threads() if core.isa else None,
                "isas": [{"name": name, "why_not": lacks or None} for name, lacks in core.lacking.items()],
            },
            "tactics": tactics,
            "versions": fingerprint.versions(),
            "cache": str(settings.cache_dir()),
        }
    )
    return 0


def _clear(out: Output) -> None:
    folder = settings.cache_dir()
    for name in ("engines", "timings", "ceilings", "converted", "conversions"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    out.line(f"Cleared {folder}")


def _set_threads(threads: int) -> None:
    from allotrope.errors import UsageError

    if not 1 <= threads <= 1024:
        raise UsageError(f"--threads is {threads}", remedy="give a number from 1 to 1024")
    import torch

    torch.set_num_threads(threads)
    native.set_threads(threads)


def _tactics(device: Device) -> dict[str, list[dict[str, Any]]]:
    """Every op's tactics with the reason, if any, that rules each out on a small typical problem."""
    from allotrope.models.typical import typical_problems
    from allotrope.ops import registry

    problems = typical_problems("fp32" if device.kind == "cpu" else "fp16")
    return {
        op: [
            {
                "name": tactic.name,
                "why_not": tactic.why_not(problem, device),
                "row_class": tactic.row_class(problem, device),
            }
            for tactic in registry.tactics(op)
        ]
        for op, problem in sorted(problems.items())
    }


def _cached(entry: tuple[str, float]) -> tuple[str, str]:
    return bytes_text(int(entry[0])), f"{entry[1] / 1e9:.0f} GB/s"


def _print_core(out: Output) -> None:
    """The native core: by which instruction set it computes and why, and why not by the others."""
    core = native.find()
    if not core.isa:
        out.sentence(f"native    none: {core.why}")
        return
    threads = native.threads()
    out.line(f"native    {core.isa}: {core.why}")
    out.sentence(f"          {threads} thread{'s'[: threads != 1]}: {native.why_threads()}")
    able = [name for name, lacks in core.lacking.items() if not lacks and name != core.isa]
    if able:
        out.line(f"          it has {', '.join(able)}, too")
    for name, lacks in core.lacking.items():
        if lacks:
            out.line(f"          not {name}: {lacks}")


def _print(device: Device, ceilings: Ceilings | None, tactics: dict[str, list[dict[str, Any]]], out: Output) -> None:
    out.line(f"device    {device.name} ({device.kind}, {device.arch})")
    out.line(f"          {device.cores} cores, {bytes_text(device.memory_bytes)}")
    if device.features:
        out.line(f"          {' '.join(device.features)}")
    if ceilings is None:
        out.line("ceilings  not measured: run `allotrope doctor --measure` (a few seconds)")
    else:
        threads = "" if device.kind == "cuda" else f" with {ceilings.threads} thread{'s'[: ceilings.threads != 1]}"
        out.line(f"ceilings  read {ceilings.read_bytes_per_s / 1e9:.1f} GB/s, measured {ceilings.measured_at}{threads}")
        for dtype, rate in ceilings.matmul_flops_per_s.items():
            unit = "OP/s" if dtype == peaks.INT8 else "FLOP/s"
            slow = "; limits take fp32's, which is faster" if rate < ceilings.rate(dtype) else ""
            out.line(f"          {dtype} matrix product {rate_text(rate, unit)}{slow}")
        if cached := list(ceilings.cache_read_bytes_per_s.items())[::2]:
            sizes, rates = (", ".join(words) for words in zip(*map(_cached, cached), strict=True))
            out.line(f"          read again and again, {sizes}:")
            out.line(f"          {rates}")
    _print_core(out)
    shown = ("torch", "transformers", "tokenizers", "numpy")
    found = fingerprint.versions()
    out.line("versions  " + ", ".join(f"{name} {found[name]}" for name in shown))
    out.line(f"cache     {settings.cache_dir()}")
    out.line()
    rows = [
        (op, entry["name"], entry["row_class"] or "–", entry["why_not"] or "yes")
        for op, entries in tactics.items()
        for entry in entries
    ]
    out.table(("op", "tactic", "row class", "runs here"), rows)
    out.line("A row is a token of a step. In a row class its bits do not depend on the other")
    out.line("rows; a tactic without one serves only with --allow-batch-variance.")
