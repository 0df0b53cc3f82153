"""`allotrope bench --load`: how fast an engine serves a load, beside the machine's limit."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.commands import build as building
from allotrope.commands import generation
from allotrope.commands.output import Output, count_text, time_text
from allotrope.errors import NumericalError, UsageError
from allotrope.units import bytes_text

if TYPE_CHECKING:
    from allotrope.artifact.engine import Engine
    from allotrope.bench.load import Measured
    from allotrope.bench.workload import Workload
    from allotrope.explain.notes import Seen
    from allotrope.runtime.opening import Opened

_USUAL = 128  # tokens, where no length is given
_MOST = 10**6
_FACTORS = (1e-6, 1e9)  # of rates, speeds and lengths
_LATENCIES = (
    ("queue", "waiting to be started"),
    ("ttft", "first token"),
    ("tpot", "per token after it"),
    ("itl", "between two tokens"),
    ("total", "whole answer"),
)
_ONLY_DRAWN, _ONLY_TRACE = ("rate", "prompt_lengths", "output_lengths"), ("requests", "speedup", "scale")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a load."""
    group = parser.add_argument_group("load")
    group.add_argument("--load", metavar="N|FILE", help="N requests, or a trace: a CSV with Azure's columns")
    group.add_argument("--rate", type=float, metavar="R", help="N: arrivals per second, at random (all at once)")
    group.add_argument("--prompt-lengths", metavar="SPEC", help="N: 128, 100:1024 or lognormal:200:0.7 (128)")
    group.add_argument("--output-lengths", metavar="SPEC", help="N: likewise (128)")
    group.add_argument("--requests", type=int, metavar="N", help="FILE: the first N only (all)")
    group.add_argument("--speedup", type=float, metavar="X", help="FILE: arrivals X times as fast; inf: at once (1)")
    group.add_argument("--scale", type=float, metavar="X", help="FILE: lengths times X (so that the longest fits)")
    group.add_argument("--trace", type=Path, metavar="FILE", help="write a timeline that ui.perfetto.dev opens")
    group.add_argument(
        "--priority", type=float, default=0.0, metavar="SHARE", help="this share of the requests goes first (0)"
    )


def first_given(args: argparse.Namespace) -> str | None:
    """An option of a load that was given although there is none."""
    names = (*_ONLY_DRAWN, *_ONLY_TRACE, "priority", "trace")
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(args, name)), None)


def run(args: argparse.Namespace, out: Output) -> int:
    """Measure, print and keep."""
    from allotrope.artifact import results
    from allotrope.bench import keep
    from allotrope.bench.load import measure
    from allotrope.bench.watch import Watched
    from allotrope.explain.notes import Notes
    from allotrope.explain.watch import WatchedLoop
    from allotrope.hw import detect, peaks
    from allotrope.runtime.loop import Loop
    from allotrope.runtime.opening import open_folder

    _check(args)
    options = generation.runtime_options(args, **({"policy": "priority"} if args.priority else {}))
    opened = open_folder(building.engine_folder(args, out, running=("max_len",)), options, timed=args.trace is not None)
    try:
        workload = _workload(args, opened)
        device = detect.detect(opened.engine.manifest.device["kind"] if args.device == "auto" else args.device)
        watched, notes = Watched(opened.executor), Notes(paged=True)
        looks = {"skip_step": options.skip_step, "check_step": options.check_step}
        if args.trace is None:
            loop = Loop(watched, opened.loop.scheduler, opened.tokenizer, opened.limits, **looks)
        else:
            loop = WatchedLoop(
                opened, notes, executor=watched, skip_step=options.skip_step, check_step=options.check_step
            )
        plan, ceilings = opened.engine.manifest.plan, peaks.load(device)
        with out.progress(len(workload.jobs), "requests") as bar:
            found = measure(loop, watched, plan, workload, ceilings=ceilings, ended=bar.advance)
    finally:
        opened.executor.close()
    figures = found.to_json()
    _print(found, figures, out)
    if args.trace is not None:
        _timeline(args, notes.seen(), len(workload.jobs), opened, out)
    facts = keep.environment(device, opened.engine, options)
    _keep(args.out, opened.engine, {**results.stamp(opened.engine.path, args.command), **facts}, found, out)
    out.result({"load": figures})
    failed = next((one.error for one in found.times if one.error), None)
    if failed:
        raise NumericalError(failed, remedy="check the engine with: allotrope verify")
    return 0


def _check(args: argparse.Namespace) -> None:
    """What argparse cannot know: bounds, which options go together, whether the trace is one and DIR can be written.

    All of it is said before an engine is opened, or even built.
    """
    from allotrope.artifact import results
    from allotrope.bench import lengths, trace

    traced = not args.load.isdecimal()
    for name in _ONLY_DRAWN if traced else _ONLY_TRACE:
        if getattr(args, name) is not None:
            what = "N requests; a trace has its own" if traced else "a trace; --load gives a number"
            raise UsageError(f"--{name.replace('_', '-')} is for {what}", remedy="leave it out")
    if not traced and not 1 <= int(args.load[:40]) <= _MOST:
        raise UsageError(f"--load is {args.load[:40]}", remedy=f"give a number from 1 to {_MOST}, or a trace's file")
    if args.requests is not None and not 1 <= args.requests <= _MOST:
        raise UsageError(f"--requests is {args.requests}; it must be from 1 to {_MOST}")
    for name in ("rate", "speedup", "scale"):
        value = getattr(args, name)
        at_once = name == "speedup" and value == math.inf
        if value is not None and not (_FACTORS[0] <= value <= _FACTORS[1] or at_once):
            raise UsageError(f"--{name} is {value}; it must be from {_FACTORS[0]:g} to {_FACTORS[1]:g}")
    if not 0 <= args.priority <= 1:
        raise UsageError(f"--priority is {args.priority}; it must be from 0 to 1")
    for name in ("prompt", "output"):
        if spec := getattr(args, f"{name}_lengths"):
            lengths.parse(f"--{name}-lengths", spec)
    if traced:
        trace.read(Path(args.load), args.requests)
    if args.trace is not None:
        from allotrope.explain import timeline

        timeline.check_path(args.trace)
    if args.out is not None:
        results.make_folder(args.out)


def _timeline(args: argparse.Namespace, seen: Seen, jobs: int, opened: Opened, out: Output) -> None:
    """Write what happened, without the requests that warmed up."""
    from allotrope.explain import timeline

    whole, began = seen.without_first(len(seen.lives) - jobs)
    about = {"command": args.command, "engine": str(opened.engine.path)}
    timeline.write(args.trace, whole, opened.engine.manifest.plan, began, about)
    out.line(f"timeline: {args.trace} (ui.perfetto.dev opens it)")


def _workload(args: argparse.Namespace, opened: Opened) -> Workload:
    """The load that the arguments describe."""
    from allotrope.bench import lengths, workload

    limits: dict[str, int] = {"max_len": opened.limits.max_len, "vocab": opened.limits.vocab, "seed": args.seed}
    if args.load.isdecimal():
        usual = str(min(_USUAL, max(opened.limits.max_len // 2, 1)))
        prompts, outputs = (
            lengths.parse(f"--{name}-lengths", getattr(args, f"{name}_lengths") or usual)
            for name in ("prompt", "output")
        )
        made = workload.drawn(int(args.load), prompts, outputs, rate=args.rate, **limits)
    else:
        speedup = 1.0 if args.speedup is None else args.speedup
        made = workload.recorded(Path(args.load), args.requests, speedup=speedup, scale=args.scale, **limits)
    return workload.with_urgent(made, args.priority, args.seed) if args.priority else made


def _print(found: Measured, figures: dict[str, Any], out: Output) -> None:
    out.line(_described(found.workload, figures))
    out.line()
    rates = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s")
    rows = [(name.removesuffix("_per_s").replace("_", " "), _rate(figures[name])) for name in rates]
    out.table(("per second", ""), rows)
    out.line()
    spreads = [(words, getattr(found.latencies, name)) for name, words in _LATENCIES]
    if found.urgent is not None:
        spreads.append(("first token, urgent", found.urgent.ttft))
    out.table(
        ("ms", "mean", "p50", "p90", "p99"),
        [(words, *(_figure(value) for value in (one.mean, one.p50, one.p90, one.p99))) for words, one in spreads],
    )
    out.line()
    out.line(
        f"{figures['steps']} steps, at most {figures['peak_running']} requests in one, "
        f"{figures['preemptions']} preemptions"
    )
    out.line(
        f"prefix cache: {count_text(figures['prefix_hit_tokens'])} of {count_text(figures['prefix_query_tokens'])} "
        "tokens found"
    )
    out.line(f"device: stood still for {found.idle_share:.1%} of the time although there was work")
    out.line(_limit(found))


def _described(workload: Workload, figures: dict[str, Any]) -> str:
    """The load in words."""
    what = workload.described
    if "trace" in what:
        how = f"from {what['trace']}, {what['speedup']:g} times as fast, lengths times {what['scale']:.3g}"
    else:
        how = "all at once" if what["rate"] is None else f"{what['rate']:g} per second"
    tokens = f"{count_text(figures['prompt_tokens'])} tokens in, {count_text(figures['output_tokens'])} out"
    return f"{figures['requests']} requests {how}:\n{tokens}, in {time_text(figures['seconds'])}"


def _limit(found: Measured) -> str:
    """The limit in words."""
    limit, ceilings = found.limit, found.ceilings
    read = f"limit: the steps had to read {bytes_text(limit.bytes)}"
    if ceilings is None or limit.seconds is None or found.share_of_limit is None:
        return f"{read}; how long that takes is not known here:\nrun allotrope doctor --measure"
    return (
        f"{read}, at {bytes_text(ceilings.read_bytes_per_s)}/s and with the\n"
        f"products at least {time_text(limit.seconds)}: {found.share_of_limit:.1%} of the limit's speed"
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _keep(asked: Path | None, engine: Engine, where: dict[str, Any], found: Measured, out: Output) -> None:
    """Keep figures and samples in the folder asked for, or in the engine's if that can be written."""
    from allotrope.bench import keep

    folder = asked or engine.path
    try:
        path = keep.keep(folder, "load", {**found.to_json(), **where, "samples": keep.samples(found.times)})
        if asked is not None:
            keep.keep_csv(folder, found.times)
    except OSError as error:
        if asked is not None:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        out.line(f"(not kept: {folder} cannot be written; name another folder with -o)")
        return
    out.line(f"every sample: {path}")
