"""`allotrope report`: all that is known of an engine in one page that anyone can open."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from allotrope.commands.output import Output
from allotrope.errors import UsageError
from allotrope.units import bytes_text

if TYPE_CHECKING:
    from allotrope.report.blocks import Plot
    from allotrope.report.contents import Account, Comparison

WORK = "writing the report"
HELP = (
    "One offline HTML file from engines' folders and what verify, bench, summarize,\n"
    "eval, ablate and explain kept there. It computes nothing: what was not measured\n"
    "stands there with the command that measures it, and a speed without a verdict\n"
    "stands in red. A result file kept elsewhere belongs to the engine before it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("engine", nargs="+", type=Path, metavar="ENGINE", help="engines' folders; result files (.json)")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="(report.html)")
    parser.add_argument("--markdown", type=Path, metavar="DIR", help="also Markdown with PNGs, for a repository")


def run(args: argparse.Namespace, out: Output) -> int:
    """Read, lay out, write."""
    from allotrope.report import contents, pictures, raw, sources
    from allotrope.report.page import page

    _check(args)
    if args.markdown is not None:
        pictures.check()
    subjects = sources.collect(args.engine)
    accounts = [contents.account(subject) for subject in subjects]
    made = time.strftime("%Y-%m-%d", time.gmtime())
    comparison = contents.compare(accounts)
    size = _write(args.out, page(accounts, comparison, raw.saved(subjects), made))
    beside = None if args.markdown is None else _write_markdown(args.markdown, accounts, comparison)
    for one in accounts:
        _print(one, out)
    out.line(f"{args.out}: {bytes_text(size)}, opens in any browser, without a network")
    if beside is not None:
        out.line(f"{beside}: the same as Markdown, its plots beside it")
    out.result(
        {
            "path": str(args.out),
            "bytes": size,
            "markdown": None if beside is None else str(beside),
            "engines": [
                {
                    "engine": str(one.subject.folder),
                    "name": one.subject.name,
                    "verdict": one.standing.word,
                    "proven": not one.standing.alarm,
                    "shown": sorted(one.subject.results),
                    "notes": one.subject.notes,
                }
                for one in accounts
            ],
        }
    )
    return 0


def _print(one: Account, out: Output) -> None:
    """The verdict, and what could not be read."""
    out.sentence(f"{one.subject.name}: {one.standing.alarm or one.standing.word}")
    for note in one.subject.notes:
        out.sentence(f"  {note}")


def _check(args: argparse.Namespace) -> None:
    """Say what is wrong with the options before anything is read."""
    if args.out.is_dir():
        raise UsageError("is a folder", where=str(args.out), remedy="name a file with -o")
    if args.markdown is not None and args.markdown.exists() and not args.markdown.is_dir():
        raise UsageError("is no folder", where=str(args.markdown), remedy="name one with --markdown")


def _write(path: Path, text: str) -> int:
    content = text.encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}", where=str(path), remedy="name another with -o"
        ) from error
    return len(content)


def _write_markdown(folder: Path, accounts: list[Account], comparison: Comparison | None) -> Path:
    """report.md and its plots; one engine's are named plainly, several engines' by number."""
    from allotrope.report import markdown, pictures

    def place(number: int, plot: Plot) -> str:
        name = f"{number}-{plot.name}.png" if comparison is not None else f"{plot.name}.png"
        pictures.draw(plot, folder / "plots" / name)
        return f"plots/{name}"

    with pictures.said_of(folder):
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        path = folder / "report.md"
        path.write_text(markdown.text(accounts, comparison, place), encoding="utf-8")
    return path
