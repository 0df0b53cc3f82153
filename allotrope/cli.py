"""The command line: verbs, common options, exit codes. Verbs load only when used; `--help` imports no torch."""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

from allotrope import __version__, settings
from allotrope.commands.output import WIDTH, Output
from allotrope.errors import AllotropeError, UsageError

VERBS = {
    "doctor": "what this machine can do: devices, measured ceilings, tactics",
    "inspect": "what a checkpoint is, its bytes, and the fastest it could run here",
    "build": "pick the fastest kernels that are also right, and write an engine",
    "run": "generate text from prompts",
    "chat": "talk with an engine",
    "verify": "the verdict: is it still the same model, and if not, where",
    "summarize": "summaries by an engine and its original, in ROUGE",
    "eval": "perplexity, the distance from the original, and code that runs",
    "bench": "how fast an engine serves a load, beside the machine's limit",
    "ablate": "what each part of an engine buys, in speed, memory and accuracy",
    "explain": "where the time goes, op by op, and what a change would do",
    "report": "all that is known of an engine in one page",
}
_AGAIN_S = 0.5  # until a termination that went nowhere is raised again
_EPILOG = """\
CKPT is a folder in Hugging Face layout, or random:SHAPE (random:llama-15m).
ENGINE is a folder that `allotrope build` wrote; a CKPT in its place is built
first and kept (--cache-dir). Exit codes: 0 well, 1 failed, 2 wrong usage or
input, 3 the verdict or a gate says no, 4 out of memory, 130 interrupted.
"""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, name the nearest known option, and exit 2 by raising."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"see {self.prog} --help")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise UsageError(f"{self.prog} has no option or argument {unknown[0]!r}", remedy=hint)
        return args


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, width=WIDTH - 2, max_help_position=26)


def _top() -> str:
    verbs = "\n".join(f"  {verb:9} {what}" for verb, what in VERBS.items())
    return (
        "usage: allotrope VERB …   (allotrope VERB --help for its options)\n"
        "       allotrope --version\n\n"
        "A faster structure for a language model, and the proof that it is the same.\n\n"
        f"verbs:\n{verbs}\n\n{_EPILOG}"
    )


def verb_parser(verb: str) -> _Parser:
    """The parser of one verb, its own options and the common ones."""
    module = importlib.import_module(f"allotrope.commands.{verb}")
    parser = _Parser(prog=f"allotrope {verb}", description=module.HELP, formatter_class=_formatter, allow_abbrev=False)
    module.add_arguments(parser)
    common = parser.add_argument_group("common options")
    common.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (auto: a GPU if there is one)"
    )
    common.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all that is drawn (0); random:SHAPE@N is the weights'"
    )
    common.add_argument("--cache-dir", type=Path, metavar="DIR", help="where engines, timings and ceilings are kept")
    common.add_argument("--version", action="version", version=f"allotrope {__version__}", help="print it")
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    common.add_argument("--quiet", action="store_true", help="print nothing but errors (and the JSON)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on stderr."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except (AllotropeError, Warning) as error:  # warnings are raised under python -W error
        return _fail(str(error), error.exit_code if isinstance(error, AllotropeError) else 1)
    except MemoryError as error:
        return _fail(f"out of memory: {error}", 4)
    except OSError as error:  # a disk, a pipe or a path that failed where nobody expected it
        return _output_failed(error)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as leave:  # argparse's --help
        return leave.code if isinstance(leave.code, int) else 0


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_top())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"allotrope {__version__}\n")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"verbs are {', '.join(VERBS)}"
        raise UsageError(f"no verb {verb!r}", remedy=hint)
    args = verb_parser(verb).parse_all(arguments[1:])
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed is {args.seed}", remedy="give a whole number from 0 to 2**63 - 1")
    args.command = shlex.join(["allotrope", *arguments])  # kept with what it finds
    out = Output(as_json=args.json, quiet=args.quiet)
    module = importlib.import_module(f"allotrope.commands.{verb}")
    work = getattr(module, "WORK", None)  # what a verb does that may take long before anything is shown
    with settings.keeping_in(args.cache_dir), out.progress(None, work) if work else nullcontext():
        code: int = module.run(args, out)
    sys.stdout.flush()
    return code


def _output_failed(error: OSError) -> int:
    """Say what failed. What is still to be written goes nowhere, so that Python's own farewell cannot fail over it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the reader has gone; what it read was right
        return 1
    place = f"{error.filename}: " if error.filename else ""
    return _fail(f"{place}{error.strerror or error}", 1)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"allotrope: {' '.join(message.splitlines())}\n")
    return code


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as one line, without the place in our source that gave it."""
    return f"allotrope: warning: {' '.join(str(message).splitlines())}\n"


class _Terminated(SystemExit):
    """SIGTERM on its way out."""


def _terminated(number: int, frame: FrameType | None) -> None:
    """Leave by raising, so that what is half-written is removed on the way; and again if that was swallowed.

    Extension modules do swallow: while `numpy.random` is imported, whatever is raised within it can be cleared.
    """
    ending = sys.exception()
    while ending is not None and not isinstance(ending, _Terminated):
        ending = ending.__context__
    if ending is not None:
        return  # what removes is at work, and must not be stopped half-way
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
    raise _Terminated(128 + signal.SIGTERM)


def entry() -> NoReturn:
    """The console script."""
    if sys.stdout is None or sys.stderr is None:  # closed before we began: the next file opened would take its place
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 it stays open to the end
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _terminated)
    warnings.formatwarning = _warning_line
    for stream in (sys.stdout, sys.stderr):
        # a locale that lacks a character (a dash, somebody's text) must not stop the program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream.encoding.lower() == "utf-8" else "replace")
    try:
        code = main()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.exit(code)
