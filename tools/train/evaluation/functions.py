"""pycoder's tasks: writing the bodies of held-out functions, and filling in a line that was taken out."""

from __future__ import annotations

import ast
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.train.evaluation import intervals
from tools.train.evaluation.lm import LanguageModel
from tools.train.evaluation.texts import Function

TEMPERATURE, BODY_TOKENS, SEED = 0.3, 96, 0
LINE_TOKENS = 48
PREFIX, SUFFIX, MIDDLE, PAD = "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"
LONGEST_PROMPT = 512  # tokens; a longer header or function is left out and counted


@dataclass(frozen=True)
class Body:
    """A body that was written, judged."""

    prompt: str
    text: str  # up to where the function ends, an unfinished last line dropped
    parses: bool  # and says something: the docstring alone would parse, too
    statements: int  # at any depth, without the docstring
    top: int  # of them, those that are no part of another
    repeats: bool  # a line, white space around it aside, stands there three times or more

    @property
    def whole(self) -> bool:
        """What the issue asks: two or more statements, and it parses."""
        return self.parses and self.statements >= 2


@dataclass(frozen=True)
class Hole:
    """A function without one of its lines."""

    before: str
    line: str
    after: str


def header(function: Function) -> str | None:
    """Everything before the body, with the summary as docstring; None for what has no body on lines of its own."""
    node = _definition(function.code)
    if node is None or not node.body:
        return None
    lines, first = function.code.splitlines(), node.body[0].lineno
    if first <= 1 or lines[first - 2].lstrip().startswith("@"):
        return None
    indent = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
    end = _header_end(node, lines)
    if not indent or end is None:
        return None
    summary = function.summary.replace("\\", " ").replace('"""', "'''")
    document = [f'{indent}"""{summary}"""'] if summary else []
    return "\n".join([*lines[:end], *document, ""])


def judge(prompt: str, written: str, finished: bool) -> Body:
    """Judge what was written after a header. `finished`: the model ended by itself, so its last line is whole."""
    lines, ended = _of_the_function(written, finished)
    if lines and not ended:
        lines.pop()  # cut off in the middle, or empty when the last token was a newline
    text = "".join(f"{line}\n" for line in lines)
    node = _definition(prompt + text)
    counts = Counter(line.strip() for line in lines if line.strip())
    body = [] if node is None else node.body[1:] if ast.get_docstring(node) is not None else node.body
    inner = sum(isinstance(part, ast.stmt) for statement in body for part in ast.walk(statement))
    return Body(prompt, text, bool(body), inner, len(body), max(counts.values(), default=0) >= 3)


def bodies(model: LanguageModel, functions: Sequence[Function], seed: int = SEED) -> list[Body]:
    """Sample one body per function."""
    prompts = [prompt for function in functions if (prompt := header(function)) is not None]
    listed = [(prompt, [model.begin, *model.ids(prompt)]) for prompt in prompts]
    listed = [(prompt, ids) for prompt, ids in listed if len(ids) <= LONGEST_PROMPT]
    written = model.write([ids for _, ids in listed], BODY_TOKENS, temperature=TEMPERATURE, seed=seed)
    return [
        judge(prompt, model.tokenizer.decode(text.ids), text.ended)
        for (prompt, _), text in zip(listed, written, strict=True)
    ]


def measure_bodies(judged: Sequence[Body]) -> dict[str, Any]:
    """The shares that the issue bounds, with their intervals."""
    total = len(judged)
    whole, fresh = sum(body.whole for body in judged), sum(not body.repeats for body in judged)
    return {
        "headers": total,
        "temperature": TEMPERATURE,
        "tokens": BODY_TOKENS,
        "seed": SEED,
        "two_statements_and_parse": whole / total,
        "two_statements_and_parse_interval": intervals.share(whole, total),
        "two_top_level_statements_and_parse": sum(body.parses and body.top >= 2 for body in judged) / total,
        "parse": sum(body.parses for body in judged) / total,
        "no_line_three_times": fresh / total,
        "no_line_three_times_interval": intervals.share(fresh, total),
    }


def hole(function: Function, source: random.Random) -> Hole | None:
    """Take out a line of the body, neither the header's nor the last, that says something."""
    node = _definition(function.code)
    if node is None or not node.body:
        return None
    lines = function.code.splitlines()
    possible = [place for place in range(node.body[0].lineno - 1, len(lines) - 1) if len(lines[place].strip()) >= 4]
    if not possible:
        return None
    place = source.choice(possible)
    return Hole("".join(f"{line}\n" for line in lines[:place]), lines[place], "\n".join(lines[place + 1 :]))


def fill(model: LanguageModel, functions: Sequence[Function]) -> dict[str, Any]:
    """Give every function with a hole to the model, prefix then suffix, and read the middle greedily."""
    source = random.Random(SEED)
    holes = [made for function in functions if (made := hole(function, source)) is not None]
    listed = [(made, _asked(model, made)) for made in holes]
    listed = [(made, ids) for made, ids in listed if len(ids) <= LONGEST_PROMPT]
    ends = {*model.tokenizer.eos_ids, *(_special(model, name) for name in (PREFIX, SUFFIX, MIDDLE, PAD))}
    written = model.write([ids for _, ids in listed], LINE_TOKENS, ends=ends)
    texts = [model.tokenizer.decode(text.ids) for text in written]
    pairs = list(zip((made for made, _ in listed), texts, strict=True))
    exact = sum(text.rstrip() == made.line.rstrip() for made, text in pairs)
    parsing = sum(_definition(f"{made.before}{text.rstrip()}\n{made.after}") is not None for made, text in pairs)
    return {
        "holes": len(pairs),
        "tokens": LINE_TOKENS,
        "exact": exact / len(pairs),
        "exact_interval": intervals.share(exact, len(pairs)),
        "parse": parsing / len(pairs),
        "parse_interval": intervals.share(parsing, len(pairs)),
        "ended": sum(text.ended for text in written) / len(pairs),
    }


def _asked(model: LanguageModel, made: Hole) -> list[int]:
    """Prefix, suffix, middle, as StarCoder's tokens were made for."""
    prefix, suffix, middle = (_special(model, name) for name in (PREFIX, SUFFIX, MIDDLE))
    return [prefix, *model.ids(made.before), suffix, *model.ids(made.after), middle]


def _special(model: LanguageModel, name: str) -> int:
    [token] = model.tokenizer.encode(name, special=False)
    return token


def _definition(code: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function that the code is, if it parses and is nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python will refuse one day
            tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # what ast.parse may raise over hostile text
        return None
    if len(tree.body) == 1 and isinstance(tree.body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
        return tree.body[0]
    return None


def _header_end(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]) -> int | None:
    """How many lines the header has: up to the one whose colon opens the body."""
    for end in range(node.lineno, node.body[0].lineno):
        if _definition("\n".join(lines[:end]) + "\n    pass\n") is not None:
            return end
    return None


def _of_the_function(written: str, finished: bool) -> tuple[list[str], bool]:
    """The lines that belong to the function, and whether it is known that the last of them is whole.

    The function ends before the first line that begins at the margin, closing brackets aside: what follows is other
    code, and nobody asked for it.
    """
    lines = written.split("\n")
    for place, line in enumerate(lines):
        if line and not line[0].isspace() and line[0] not in ")]}":
            return lines[:place], True
    return lines, finished
