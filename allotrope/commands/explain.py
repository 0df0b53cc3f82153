"""`allotrope explain`: where an answer's time goes, op by op, beside the least that it could take, in words too."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.commands import build as building
from allotrope.commands import generation
from allotrope.commands.output import Output
from allotrope.errors import UsageError

if TYPE_CHECKING:
    from allotrope.explain.changes import Change
    from allotrope.explain.drive import Asked
    from allotrope.explain.explanation import Explained
    from allotrope.explain.session import Setting
    from allotrope.hw.device import Device
    from allotrope.hw.peaks import Ceilings
    from allotrope.runtime.options import RuntimeOptions

WORK = "explaining"
HELP = (
    "Where an answer's time goes: each op beside the least that it could take, why it\n"
    "runs on its tactic, and what the host did in between. Prompts are random tokens.\n"
    "Figures and samples are kept in explain.json."
)
_MOST = 10**6
_MOST_SEQS = 4096  # that a runtime takes
_LEGEND = """\
floor: the least time for what is read and computed, at the rates that were
measured here (allotrope doctor). limit: the floor's share of the time."""

_GAPS = {
    "tokenising": "prompts into tokens",
    "queueing": "requests checked and queued",
    "planning": "steps planned",
    "preparing": "a step's arrays prepared",
    "returning": "results handed back",
    "committing": "tokens taken in",
    "text": "tokens into text",
    "detokenising": "answers gathered",
    "loop": "the loop itself",
    "standing still": "the device stood still",
    "unaccounted": "not accounted for",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", metavar="ENGINE", help="an engine's folder, or a checkpoint")
    parser.add_argument("--io", default="64,32", metavar="IN,OUT", help="tokens of prompt and answer (64,32)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="prompts at a time (1)")
    parser.add_argument("--by", choices=("op", "call"), default="op", help="what a row of the table is (op)")
    parser.add_argument(
        "--predict",
        action="append",
        metavar="CHANGE",
        help="what it would do: int8, kv=int8, batch=8, … or none (repeatable; what suits the engine)",
    )
    parser.add_argument("--against", type=Path, metavar="FILE", help="score what this earlier explain.json predicted")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a timeline that ui.perfetto.dev opens")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to keep what was found (ENGINE)")
    generation.add_running(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Run, account, print and keep."""
    from allotrope.artifact import results
    from allotrope.explain import score, session, timeline, words
    from allotrope.hw.detect import detect

    asked = _asked(args)
    if args.out is not None:
        results.make_folder(args.out)
    if args.trace is not None:
        timeline.check_path(args.trace)
    before = None if args.against is None else score.read(args.against)
    folder = building.engine_folder(args, out, running=("max_len",))
    session.check(folder, asked)
    changes = _changes(args, folder, asked, out)
    device = detect(_kind(folder) if args.device == "auto" else args.device)
    setting = session.Setting(_options(args, asked), device, _ceilings(device, out), args.seed, args.trace is not None)
    with out.progress(session.PAIRS, "running with clocks and without") as bar:
        found = session.explain(folder, asked, setting, bar.advance)
    predicted = _predicted(folder, found, changes, setting, out, named=args.predict is not None) if changes else []
    figures = found.to_json() | {"predicted": predicted, "scored": None, "trace": None}
    figures["scored"] = _scored(args.against, before, folder, figures, found)
    figures["words"] = [*words.sentences(found), *(one["words"] for one in predicted)]
    if figures["scored"] is not None:
        figures["words"].append(score.sentence(figures["scored"]))
    _print(figures, args.by, out)
    if args.trace is not None:
        middle, about = found.runs.middle, {"command": args.command, "engine": str(folder)}
        timeline.write(args.trace, middle.seen, found.manifest.plan, middle.began, about)
        figures["trace"] = str(args.trace)
        out.line(f"timeline: {args.trace} (ui.perfetto.dev opens it)")
    _keep(args, folder, figures, found, device, out)
    out.result(figures)
    return 0


def _asked(args: argparse.Namespace) -> Asked:
    """Prompts, and tokens in and out."""
    from allotrope.explain.drive import Asked

    into, comma, output = args.io.partition(",")
    numbers = [int(one) if one.strip().isdecimal() and len(one) < 8 else 0 for one in (into, output)]
    if not comma or not all(1 <= one <= _MOST for one in numbers):
        raise UsageError(f"--io is {args.io[:40]!r}", remedy="give tokens in and out, such as 64,32")
    if not 1 <= args.batch <= _MOST:
        raise UsageError(f"--batch is {args.batch}", remedy=f"give a number from 1 to {_MOST}")
    return Asked(args.batch, *numbers)


def _changes(args: argparse.Namespace, folder: Path, asked: Asked, out: Output) -> list[Change]:
    """The changes to predict: those asked for, or what would say most about this engine."""
    from allotrope.artifact import manifest
    from allotrope.explain.changes import Change, usual

    described = manifest.read(folder)
    if args.predict == ["none"]:
        return []
    changes = [Change.parse(words) for words in args.predict or usual(described.plan)]
    for change in changes:  # what cannot be is said before anything runs
        change.asked(asked)
        try:
            change.outline(described, str(described.device["kind"]))
        except UsageError as error:
            if args.predict is not None:
                raise
            out.sentence(f"Nothing is predicted: {error}")
            return []
    return changes


def _predicted(
    folder: Path, found: Explained, changes: list[Change], setting: Setting, out: Output, *, named: bool
) -> list[dict[str, Any]]:
    """Each change's prediction. Steps that are recorded whole give none, and say so if one was asked for by name."""
    from allotrope.explain.predict import predict

    if found.account.whole_s and not named:
        return []
    predicted = []
    with out.progress(len(changes), "rehearsing changes") as bar:
        for change in changes:
            predicted.append(predict(folder, found, change, setting).to_json())
            bar.advance()
    return predicted


def _scored(
    against: Path | None, before: Mapping[str, Any] | None, folder: Path, figures: Mapping[str, Any], found: Explained
) -> dict[str, Any] | None:
    """What was predicted of this, there or in the engine's own last explanation, beside what it is."""
    from allotrope.explain import score

    source = str(found.manifest.source["digest"])
    if against is not None and before is not None:
        scored = score.score(before, figures, source)
        if scored is None:
            raise score.missing(against, before, figures, source)
        return scored
    try:
        return score.score(score.read(folder / "explain.json"), figures, source)
    except UsageError:  # there is none yet, or one of an earlier version
        return None


def _kind(folder: Path) -> str:
    """The kind of device that the engine was built for."""
    from allotrope.artifact import manifest

    return str(manifest.read(folder).device["kind"])


def _options(args: argparse.Namespace, asked: Asked) -> RuntimeOptions:
    """Room for twice what is asked, so that nobody waits for pages, unless other room is asked for."""
    given = generation.runtime_options(args)
    seqs = min(2 * asked.batch, _MOST_SEQS) if args.max_num_seqs is None else given.max_num_seqs
    return replace(given, max_num_seqs=seqs, max_len=args.max_len or asked.into + asked.output)


def _ceilings(device: Device, out: Output) -> Ceilings:
    """What the machine can do at best: as kept or, the first time, measured now and kept."""
    from allotrope.hw import peaks

    known = peaks.load(device)
    if known is None:
        with out.progress(1, "measuring what the machine can do"):
            known = peaks.measure(device, budget_s=1.0)
        peaks.keep(device, known)
    return known


def _print(figures: Mapping[str, Any], by: str, out: Output) -> None:
    for sentence in figures["words"]:
        out.sentence(sentence)
    out.line()
    headers = (by, "prompt ms", "decode ms", "share", "floor ms", "limit", "tactic")
    out.table(headers, list(_rows(figures, by)))
    out.line(_LEGEND)
    out.line()
    gaps = [
        (_GAPS.get(name, name), f"{took:.3f}", f"{took / figures['total_ms']:.2%}")
        for name, took in _largest(figures["gaps_ms"])
    ]
    out.table(("around the calls", "ms", "share"), gaps)
    out.line()
    if by == "call":
        _print_why(figures, out)


def _largest(gaps: Mapping[str, float]) -> list[tuple[str, float]]:
    """The largest first, what nobody accounts for last."""
    return sorted(gaps.items(), key=lambda one: (one[0] == "unaccounted", -one[1]))


def _rows(figures: Mapping[str, Any], by: str) -> Iterator[tuple[str, ...]]:
    """A row per op, or per kind of call: the blocks' are told together."""
    for name, one in figures["accounted" if by == "op" else "kinds"].items():
        label = f"{name} ×{one['calls']}" if one["calls"] > 1 else name
        used = list(dict.fromkeys(tactic["tactic"] for tactic in reversed(one["tactics"])))
        yield (
            label,
            f"{one['context_ms']:.3f}",
            f"{one['decode_ms']:.3f}",
            f"{one['share']:.1%}",
            "" if one["floor_ms"] is None else f"{one['floor_ms']:.3f}",
            "" if one["share_of_limit"] is None else f"{one['share_of_limit']:.0%}",
            ", ".join(used),
        )


def _print_why(figures: Mapping[str, Any], out: Output) -> None:
    """Why each kind of call runs on its tactic, while decoding and on the prompt."""
    for name, one in figures["kinds"].items():
        for tactic in one["tactics"]:
            out.sentence(f"{name}, {tactic['phase']}: {tactic['tactic']}: {tactic['why']}")
    out.line()


def _keep(
    args: argparse.Namespace,
    engine: Path,
    figures: Mapping[str, Any],
    found: Explained,
    device: Device,
    out: Output,
) -> None:
    """Keep it in the folder asked for, or in the engine's if that can be written."""
    from allotrope.artifact import results
    from allotrope.artifact.engine import open_engine
    from allotrope.explain.explanation import samples

    folder = args.out or engine
    try:
        path = results.keep(folder, "explain", figures, open_engine(engine), device, args.command, samples(found.runs))
    except OSError as error:
        if args.out is not None:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        out.line(f"(not kept: {folder} cannot be written; name another folder with -o)")
        return
    out.line(f"kept, with every sample: {path}")
