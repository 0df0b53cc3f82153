"""`allotrope build`: from a checkpoint to an engine, and a table of what was chosen and why."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from allotrope.build import build
from allotrope.build.options import DTYPES, EXECUTORS, PLANS, TUNE, BuildOptions
from allotrope.commands.formats import add_formats, print_errors
from allotrope.commands.output import Output, time_text
from allotrope.ops.kv_rows import COMPUTE
from allotrope.units import bytes_text

WORK = "building"
HELP = "Pick the fastest kernels that are also right here, and write an engine folder."

_BLOCK = r"^blocks\.\d+\."
_LEGEND = """\
rows: tokens in a step. floor: the least time if all is read from memory.
*: faster here, but its rows' bits depend on the other rows (this is what
--allow-batch-variance is for), or its kind is slower over all row counts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a folder in Hugging Face layout, or random:SHAPE")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the engine folder to write (or replace)")
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="auto",
        help="what it is to run on (auto: on a CPU native where the core computes all, on a GPU graph)",
    )
    add_build_options(parser)


def add_build_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare what a build can be asked for; also for verbs that take a checkpoint for an engine."""
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of compute (auto: fp32 on a CPU)")
    add_formats(parser)
    parser.add_argument(
        "--tune", choices=TUNE, default="fast", help="how hard to measure; off: listing order, checked but not timed"
    )
    parser.add_argument(
        "--without",
        default="",
        metavar="PART,…",
        help="leave out fusions (qkv, gate_up), tactics (linear/torch_mm) or all of an op's (attention)",
    )
    parser.add_argument("--plan", choices=PLANS, default="best", help="reference: every op by its reference")
    parser.add_argument("--plus", default="", metavar="PART,…", help="add parts, named likewise, to --plan reference")
    parser.add_argument(
        "--allow-batch-variance",
        action="store_true",
        help="faster: a row's last bits may depend on the other rows",
    )
    parser.add_argument("--max-batch", type=int, default=64, metavar="N", help="requests at a time (64)")
    parser.add_argument("--max-len", type=int, metavar="N", help="tokens per request (what the model allows)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (all)")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read .bin and .pt files, weights only, in a subprocess"
    )
    parser.add_argument("--allow-nan", action="store_true", help="warn of NaN weights instead of refusing them")


def build_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options given, by the names of `BuildOptions`."""
    given = {name: getattr(args, name) for name in BuildOptions.__dataclass_fields__ if hasattr(args, name)}
    parts = {name: tuple(part for part in getattr(args, name).split(",") if part) for name in ("without", "plus")}
    return given | parts | {"keep": tuple(args.keep)}


def engine_folder(args: argparse.Namespace, out: Output, running: tuple[str, ...]) -> Path:
    """The engine that the arguments name; a checkpoint in its place is built with the options given, and kept.

    `running` are the builder's options that mean something else to the verb, or something to an engine, too.
    """
    from allotrope.api import engine_folder

    usual, shared = BuildOptions().to_json(), ("device", "seed", "threads", "executor", *running)
    given = {name: value for name, value in build_options(args).items() if name not in shared}
    changed = {name: value for name, value in given.items() if value != usual[name] and value != ()}
    return engine_folder(args.engine, args.device, changed, out.progress, args.threads)


def run(args: argparse.Namespace, out: Output) -> int:
    """Build and print."""
    built = build(args.checkpoint, args.out, progress=out.progress, said=out.sentence, **build_options(args))
    evidence, kind = built.manifest.evidence, built.manifest.device["kind"]
    print_errors(evidence["quantisation"], out)
    choices: list[Mapping[str, Any]] = evidence["choices"]
    if choices:
        _print_choices(choices, out)
    executor = evidence["executor"]
    told = f" (not native: {executor['not_native']})" if kind == "cpu" and executor["not_native"] else ""
    out.sentence(f"executor: {executor['kind']}{told}")
    fetch = evidence["tuning"]["fetch"]
    if fetch is not None:
        out.sentence(_fetched(fetch))
    for name, reason in evidence["fusions"].items():
        out.sentence(f"fusion {name}: {reason}")
    varying = evidence["batch_variance"]["calls_without_row_class"]
    if varying:
        out.sentence(f"{len(varying)} calls have no row class: a row's bits may depend on the other rows")
    whole = evidence["checks"]["whole_model"]
    out.line(
        f"whole model: error {_short(whole['rms_error'])}, noise floor {_short(whole['floor_rms'])} of the logits' RMS"
    )
    kv = evidence["kv"]
    if set(kv["layers"]) != {COMPUTE}:
        narrow, wide = (bytes_text(kv[name]) for name in ("bytes_per_token", "bytes_per_token_wide"))
        out.sentence(f"KV cache: {kv['format']}, {narrow} per token instead of {wide}")
    size = sum(facts.bytes for facts in built.manifest.files.values())
    out.line(
        f"{built.path}: {bytes_text(size)}, {built.manifest.dtype}, in {time_text(built.seconds)}, "
        f"{bytes_text(built.peak_memory_bytes)} of memory at the peak"
    )
    out.result(
        {
            "engine": str(built.path),
            "seconds": built.seconds,
            "choices": choices,
            "quantisation": evidence["quantisation"],
            "peak_memory_bytes": built.peak_memory_bytes,
            "executor": executor,
            "fetch": fetch,
            "fusions": evidence["fusions"],
            "batch_variance": evidence["batch_variance"],
            "whole_model": whole,
            "kv": kv,
            "bytes": size,
            "dtype": built.manifest.dtype,
        }
    )
    return 0


def _print_choices(choices: list[Mapping[str, Any]], out: Output) -> None:
    """The table, without columns that nothing is known for, and what it means."""
    timed = any(bucket["seconds"] is not None for choice in choices for bucket in choice["buckets"])
    floors = any(bucket["floor_s"] is not None for choice in choices for bucket in choice["buckets"])
    kept = [True, True, True, timed, timed and floors, True]
    headers = ("op", "rows", "tactic", "time", "floor", "runner-up" if timed else "next in the listing")
    rows = [headers, *_rows(choices)]
    fitting = [tuple(itertools.compress(row, kept)) for row in rows]
    out.table(fitting[0], fitting[1:])
    if timed:
        out.line(_LEGEND)
        if not floors:
            out.line("No floor is known before `allotrope doctor --measure` (a few seconds).")
    out.line()


def _rows(choices: list[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """One line per choice and row bucket."""
    for choice in choices:
        label = f"{re.sub(_BLOCK, '', choice['paths'][0])} ×{len(choice['paths'])}"
        for bucket in choice["buckets"]:
            rows = str(bucket["up_to_rows"] or ("more" if len(choice["buckets"]) > 1 else "any"))
            yield label, rows, bucket["tactic"], _time(bucket["seconds"]), _time(bucket["floor_s"]), _rival(bucket)
            label = ""


def _rival(bucket: Mapping[str, Any]) -> str:
    """The fastest of the others, marked where it is faster than what was chosen."""
    rivals = sorted(bucket["runners_up"], key=lambda rival: rival["seconds"] or 0.0)
    if not rivals or rivals[0]["seconds"] is None or bucket["seconds"] is None:
        return rivals[0]["tactic"] if rivals else ""
    mark = "*" if rivals[0]["seconds"] < bucket["seconds"] else ""
    return f"{rivals[0]['tactic']} {_time(rivals[0]['seconds'])}{mark}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else time_text(seconds)


def _fetched(fetch: Mapping[str, Any]) -> str:
    """Into which cache weights are fetched ahead, and why."""
    caches = {"near": "the nearest cache", "far": "the second cache"}
    choice, guess = fetch["choice"], fetch["guess"]
    other = "far" if choice == "near" else "near"
    usual = "as is usual for this kind of CPU" if choice == guess else "though that is not usual for this kind of CPU"
    took = f"{time_text(fetch[choice])}, with {caches[other]} {time_text(fetch[other])}"
    doubt = "; no clear difference" if choice == guess and abs(fetch["gain"]) <= fetch["noise"] else ""
    return f"weights are prefetched into {caches[choice]}, {usual} (largest layer, {fetch['path']}: {took}{doubt})"


def _short(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.2g}"
