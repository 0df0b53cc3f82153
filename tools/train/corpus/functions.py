"""Functions and what their docstrings say, by the syntax tree."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

Definition = ast.FunctionDef | ast.AsyncFunctionDef
_LINES = range(3, 61)
_LONGEST_CODE = 4000  # characters


@dataclass(frozen=True)
class Function:
    """A function's source without its docstring and without a last line end, and the docstring's first sentence."""

    name: str
    code: str
    summary: str


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """Functions and methods of a module, not those inside other functions (they are in those functions' source)."""
    for node in scopes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def scopes(tree: ast.Module) -> Iterator[Definition | ast.ClassDef]:
    """Classes and functions of a module in the order of the text; functions are not entered."""
    waiting: list[ast.stmt] = tree.body[::-1]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            continue
        if isinstance(node, ast.ClassDef):
            yield node
        if isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With):
            handlers = [handler.body for handler in getattr(node, "handlers", ())]
            blocks = [node.body, *handlers, getattr(node, "orelse", []), getattr(node, "finalbody", [])]
            waiting += [statement for block in blocks for statement in block][::-1]


def functions(text: str, tree: ast.Module) -> Iterator[Function]:
    """Every function of 3 to 60 lines whose docstring begins with a sentence, in the order of the tree."""
    lines = text.split("\n")
    for node in definitions(tree):
        docstring = ast.get_docstring(node, clean=False)
        if docstring and len(node.body) > 1 and (said := summary(docstring)):
            code = without_docstring(lines, node)
            if code is not None and code.count("\n") + 1 in _LINES and len(code) <= _LONGEST_CODE:
                yield Function(node.name, code, said)


def without_docstring(lines: list[str], node: Definition) -> str | None:
    """The source of `node`, decorators kept, moved to the left margin, its docstring cut out.

    None where that is no longer the same function: a string that spans lines left of the margin, say.
    """
    first = _first_line(node)
    said = node.body[0]
    head, tail = lines[said.lineno - 1].encode(), lines[(said.end_lineno or 0) - 1].encode()
    before, behind = head[: said.col_offset].decode(), tail[said.end_col_offset :].decode()
    behind = re.sub(r"^\s*;?\s*", "", behind)
    kept = lines[first - 1 : said.lineno - 1]
    below = lines[said.end_lineno : node.end_lineno]
    if before.strip() or behind:
        kept.append(before + behind)
    else:
        while below and not below[0].strip():
            below = below[1:]
    return _at_margin(kept + below, node)


def _first_line(node: Definition) -> int:
    """Where the function begins: with its first decorator, if it has one."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _at_margin(lines: list[str], node: Definition) -> str | None:
    margin = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    code = "\n".join(line.removeprefix(margin) for line in lines)
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        return None
    if len(body) != 1 or not isinstance(body[0], type(node)):
        return None
    if not re.search(r"\"\"\"|'''|\\\n", code):  # only a string of several lines feels the margin
        return code
    same = [ast.dump(statement) for statement in node.body[1:]] == [ast.dump(statement) for statement in body[0].body]
    return code if same else None


def fingerprints(text: str, tree: ast.Module) -> dict[bytes, int]:
    """A hash and the size of every function of more than two lines, blind to layout, comments and docstrings."""
    lines, found = text.split("\n"), {}
    for node in definitions(tree):
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if body:
            skip = range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1) if body is not node.body else range(0)
            kept = [lines[at - 1] for at in range(_first_line(node), (node.end_lineno or 0) + 1) if at not in skip]
            if len(kept) > 2:
                found[fingerprint("\n".join(kept))] = sum(map(len, kept))
    return found


def fingerprint(code: str) -> bytes:
    """A hash of code that does not see white space and whole-line comments."""
    kept = ("".join(line.split()) for line in code.split("\n") if not line.lstrip().startswith("#"))
    return hashlib.blake2b("".join(kept).encode(), digest_size=12).digest()


_ROLE = re.compile(r":[\w:+.-]+:`~?([^`<]*?)(?: *<[^`>]*>)?`")
_BOILERPLATE = re.compile(
    r"deprecat|todo|fixme|xxx|https?:|www\.|>>>|\.\. |^see |^overrid|^return self|^initiali[sz]e self|^constructor|"
    r"^(?:setter|getter|property|test|alias|same as|wrapper|helper|internal|private|note|warning)\b|"
    r"not implemented|^x\.__|docstring|^this (?:method|function) is (?:used|called)|[{}|\\=]|%[sd(]|::",
    re.IGNORECASE,
)


def summary(docstring: str) -> str | None:
    """The docstring's first sentence as plain English of 4 to 25 words, or None if it is not that."""
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n", 1)[0].split())
    plain = _ROLE.sub(r"\1", paragraph).replace("`", "").replace("*", "")
    sentence = first_sentence(plain)
    words = sentence.rstrip(".!?").split()
    if not 4 <= len(words) <= 25 or not sentence.isascii() or _BOILERPLATE.search(sentence):
        return None
    plain_words = [word for word in words if re.fullmatch(r"[A-Za-z][a-z'-]*[,;:]?", word)]
    if len(plain_words) < 0.6 * len(words) or not re.fullmatch(r"[A-Za-z][a-z-]*,?", words[0]):
        return None
    if sentence.endswith((":", ",", ";", "?")):
        return None
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith((".", "!")) else ".")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence: not one of an abbreviation, a number or a name."""
    for stop in re.finditer(r"[.!?](?=\s+[A-Z`(\[]|\s*$)", text):
        before = text[: stop.start()].rsplit(" ", 1)[-1].lower()
        if before not in {"e.g", "i.e", "vs", "etc", "cf", "eq", "fig", "no", "resp", "approx"}:
            return text[: stop.end()].strip()
    return text.strip()
