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
    from allotrope.report.contents import Account

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
    from allotrope.report import contents, raw, sources
    from allotrope.report.page import page

    _check(args.out)
    subjects = sources.collect(args.engine)
    accounts = [contents.account(subject) for subject in subjects]
    made = time.strftime("%Y-%m-%d", time.gmtime())
    text = page(accounts, contents.compare(accounts), raw.saved(subjects), made)
    size = _write(args.out, text)
    for one in accounts:
        _print(one, out)
    out.line(f"{args.out}: {bytes_text(size)}, opens in any browser, without a network")
    out.result(
        {
            "path": str(args.out),
            "bytes": size,
            "markdown": None,
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
    out.sentence(f"{one.subject.name}: {one.standing.word}" + (f". {one.standing.alarm}" if one.standing.alarm else ""))
    for note in one.subject.notes:
        out.sentence(f"  {note}")


def _check(path: Path) -> None:
    """Say what is wrong with -o before anything is read."""
    if path.is_dir():
        raise UsageError("is a folder", where=str(path), remedy="name a file with -o")


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
