"""What can be read off a function's source with certainty: the only ground on which tinychat's answers stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from tools.train.corpus.functions import Definition

_OWN_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Facts:
    """A function's properties; what happens inside functions that it defines is theirs, not its own."""

    name: str
    parameters: tuple[str, ...]
    defaults: tuple[tuple[str, str | None], ...]  # per parameter that could have one: its source, None if it has none
    decorators: tuple[str, ...]
    is_async: bool
    defines: bool  # functions, classes or lambdas of its own, about whose insides "no" would be an arguable answer
    returns: bool
    yields: bool
    raises: tuple[str, ...]  # names of exception classes, in order of appearance
    raises_unnamed: bool  # a bare `raise`, or of something that is not a class by its name
    loops: tuple[str, ...]  # of "for" and "while"
    comprehends: bool
    calls: tuple[str, ...]
    names: frozenset[str]  # every name and attribute in it, so as not to ask about one that is there in another role


def facts(code: str) -> Facts:
    """The facts about the one function that `code` defines."""
    node = ast.parse(code).body[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        raise ValueError("the code is not one function")
    inside = list(_own(node))
    raised = [item.exc for item in inside if isinstance(item, ast.Raise)]
    named = [name for exc in raised if (name := _name(exc)) and name[0].isupper()]
    loops = [
        kind
        for kind, types in (("for", (ast.For, ast.AsyncFor)), ("while", (ast.While,)))
        if any(isinstance(item, types) for item in inside)
    ]
    return Facts(
        name=node.name,
        parameters=tuple(_parameters(node.args)),
        defaults=tuple(_defaults(node.args)),
        decorators=tuple("@" + ast.unparse(decorator) for decorator in node.decorator_list),
        is_async=isinstance(node, ast.AsyncFunctionDef),
        defines=any(isinstance(item, _OWN_SCOPE) for item in inside),
        returns=any(isinstance(item, ast.Return) and not _is_none(item.value) for item in inside),
        yields=any(isinstance(item, ast.Yield | ast.YieldFrom) for item in inside),
        raises=tuple(dict.fromkeys(named)),
        raises_unnamed=len(named) < len(raised),
        loops=tuple(loops),
        comprehends=any(isinstance(item, _COMPREHENSIONS) for item in inside),
        calls=tuple(dict.fromkeys(filter(None, (_name(item) for item in inside if isinstance(item, ast.Call))))),
        names=frozenset(_names(node)),
    )


def _own(node: Definition) -> Iterator[ast.AST]:
    """Every node of the body but those of scopes defined in it."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        item = waiting.pop(0)
        yield item
        if not isinstance(item, _OWN_SCOPE):
            waiting = [*ast.iter_child_nodes(item), *waiting]


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _name(node: ast.AST | None) -> str:
    """The last name of `a.b.c`, or of the call of it; empty where there is none."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _names(node: Definition) -> Iterator[str]:
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute):
            yield item.attr
        elif isinstance(item, ast.Name):
            yield item.id
        elif isinstance(item, ast.arg | ast.keyword) and item.arg:
            yield item.arg
        elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield item.name
        elif isinstance(item, ast.alias):
            yield item.asname or item.name


def _parameters(args: ast.arguments) -> Iterator[str]:
    for arg in (*args.posonlyargs, *args.args):
        yield arg.arg
    if args.vararg:
        yield "*" + args.vararg.arg
    for arg in args.kwonlyargs:
        yield arg.arg
    if args.kwarg:
        yield "**" + args.kwarg.arg


def _defaults(args: ast.arguments) -> Iterator[tuple[str, str | None]]:
    positional = [*args.posonlyargs, *args.args]
    bare: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    pairs = zip([*positional, *args.kwonlyargs], [*bare, *args.defaults, *args.kw_defaults], strict=True)
    for arg, value in pairs:
        if arg.arg not in ("self", "cls"):
            yield arg.arg, ast.unparse(value) if value is not None else None
