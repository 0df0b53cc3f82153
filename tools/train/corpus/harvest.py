"""What one project gives: its code, its prose and its documented functions, each file judged on its own."""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.train.corpus import fetch, files
from tools.train.corpus.functions import Function, fingerprint, fingerprints, functions, scopes
from tools.train.corpus.sources import Source, check_licence

_SHORTEST_DOCSTRING = 200  # of a module or class, characters
_SHORTEST_OF_FUNCTION = 500
_STDLIB_LEFT_OUT = (
    "test/", "idlelib/", "lib2to3/", "pydoc_data/", "encodings/", "site-packages/", "dist-packages/", "ensurepip/",
    "turtledemo/", "__phello__", "config-", "lib-dynload/", "__pycache__", "tkinter/test", "unittest/test",
)  # fmt: skip


@dataclass(frozen=True)
class CodeFile:
    """One Python file; `parts` are its functions' fingerprints and sizes, `whole` is the file's fingerprint."""

    path: str
    text: str
    whole: bytes
    parts: dict[bytes, int]


@dataclass
class Harvest:
    """Everything kept of one project, before duplicates among projects are taken out."""

    name: str
    version: str
    heldout: bool
    evidence: dict[str, str]
    code: list[CodeFile] = field(default_factory=list)
    docs: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[tuple[str, Function]] = field(default_factory=list)


def harvest(source: Source, archive: Path) -> Harvest:
    """A downloaded project, after its licence was checked."""
    evidence = check_licence(source, *fetch.metadata_of(archive))
    found = Harvest(source.name, source.version, source.heldout, evidence)
    _gather(found, fetch.members(archive))
    return found


def harvest_standard_library() -> Harvest:
    """The running interpreter's own library, which is under the PSF's licence."""
    version = ".".join(map(str, sys.version_info[:3]))
    found = Harvest("python", version, False, {"license": "PSF-2.0", "metadata": "PSF-2.0", "text": "LICENSE"})
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*.py")))
    named = [path for path in paths if not any(left in path for left in _STDLIB_LEFT_OUT)]
    _gather(found, ((path, (root / path).read_bytes()) for path in named))
    return found


def _gather(found: Harvest, members: Iterable[tuple[str, bytes]]) -> None:
    for name, data in members:
        if files.wanted_code(name):
            _add_code(found, name, data)
        elif files.wanted_prose(name) and (text := files.decoded(data)) and (prose := files.clean_prose(text)):
            found.docs.append((name, prose))


def _add_code(found: Harvest, name: str, data: bytes) -> None:
    text = files.decoded(data)
    code = files.clean_code(text) if text else None
    if code is None:
        return
    tree = parsed(code)
    if tree is None or next(scopes(tree), None) is None or _is_table(tree, code.count("\n")):
        return  # without a class or function there are only imports or constants
    found.code.append(CodeFile(name, code, fingerprint(code), fingerprints(code, tree)))
    if prose := files.clean_prose("\n\n".join(_docstrings(tree)) + "\n"):
        found.docs.append((name, prose))
    found.pairs.extend((name, function) for function in functions(code, tree))


def parsed(text: str) -> ast.Module | None:
    """The syntax tree, or None for what this Python cannot read (Python 2, templates)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not ours to report
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_table(tree: ast.Module, lines: int) -> bool:
    """Most of the file is literals of many lines."""
    literal = 0
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.List | ast.Dict | ast.Tuple | ast.Set | ast.Constant | ast.Call):
            span = (value.end_lineno or 0) - value.lineno
            literal += span if span > 30 else 0
    return literal > 0.4 * lines


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Prose in the file: docstrings of the module, its classes and, where they are long, its functions."""
    for node in (tree, *scopes(tree)):
        shortest = _SHORTEST_DOCSTRING if isinstance(node, ast.Module | ast.ClassDef) else _SHORTEST_OF_FUNCTION
        said = ast.get_docstring(node, clean=False)
        if said and len(said) >= shortest:
            yield inspect.cleandoc(said).strip()
