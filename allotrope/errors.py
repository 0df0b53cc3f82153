"""Typed errors: what is wrong, where, and what to do about it, in one line."""

from __future__ import annotations

_LONGEST = {
    "problem": 500,
    "where": 4200,
    "remedy": 2000,
}  # a path may have 4096 bytes; what a file says may be endless


class AllotropeError(Exception):
    """Base of every error that this package raises on purpose.

    `str(error)` is one line: the problem, then the place, then the remedy. `exit_code` is what the command
    line exits with (0 well, 1 failed, 2 wrong usage or input, 3 the verdict or a gate says no, 4 out of memory).
    """

    exit_code = 1

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.problem, self.where, self.remedy = problem, where, remedy
        said = _one_line(problem, _LONGEST["problem"])
        parts = [f"{_one_line(where, _LONGEST['where'])}: {said}" if where else said]
        if remedy:
            parts.append(_one_line(remedy, _LONGEST["remedy"]))
        super().__init__("; ".join(parts))


class UsageError(AllotropeError):
    """The caller asked for something that cannot be: an option, a value, a combination."""

    exit_code = 2


class RequestError(UsageError):
    """A generation request is out of bounds; the message names the field, the value and the bound."""


class CheckpointError(AllotropeError):
    """A checkpoint is unreadable, incomplete, inconsistent or of an unknown kind."""

    exit_code = 2


class TokenizerError(CheckpointError):
    """A tokenizer's or chat template's file is unreadable, hostile or of an unknown kind."""


class EngineError(AllotropeError):
    """An engine folder is unreadable, incomplete, tampered with, or made for something else."""

    exit_code = 2


class BuildError(AllotropeError):
    """No engine could be built: no tactic survived, or another build holds the target."""


class NumericalError(AllotropeError):
    """A computation produced NaN or infinity where none may be."""


class OutOfMemory(AllotropeError):
    """Something does not fit; the message gives needed and available bytes."""

    exit_code = 4


def _one_line(text: str, longest: int) -> str:
    """The text as it may be shown: names and values in it come from files, so no line ends, no terminal's escapes, no
    halves of surrogate pairs, and no end to be waited for."""
    half = longest // 2  # a value stands in the middle, what is wrong with it often behind
    cut = text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in cut)
