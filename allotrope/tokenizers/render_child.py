"""The template renderer's far side, run as a script: reads conversations, writes text. Imports no Allotrope.

Users' strings are `Said`: they compare, split, strip and search as the strings they are, so every template does with
them what it would do anywhere, but on the way out a guard character goes inside each special token that they spell.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache, wraps
from types import BuiltinMethodType
from typing import Any

MEMORY = 512 << 20
MAX_TEXT = 8 << 20  # characters that a template may write
CPU_SECONDS = 2  # per conversation; the near side stops us after one of wall time, unless it is gone itself
GUARDS = range(0xF0000, 0xFFFFE)  # private use: no text has them by accident


class Guard:
    """What `Said` strings are made safe against, for the conversation being rendered."""

    char = ""
    starts: re.Pattern[str] | None = None  # matches, emptily, where a special token begins
    prefixes: frozenset[str] = frozenset()
    longest = 0

    @classmethod
    def set(cls, char: str, specials: tuple[str, ...]) -> None:
        """Take the guard character and the special tokens of this conversation."""
        cls.char = char
        cls.starts, cls.prefixes, cls.longest = _patterns(specials)

    @classmethod
    def protect(cls, text: str) -> str:
        """The text with the guard after the first character of each special token, and after the beginning of one."""
        if cls.starts is None:
            return text
        text = cls.starts.sub(lambda match: match[1] + cls.char, text)
        if any(text[-size:] in cls.prefixes for size in range(1, min(cls.longest, len(text)) + 1)):
            text += cls.char  # another string that follows could complete it
        return text


@lru_cache(maxsize=4)
def _patterns(specials: tuple[str, ...]) -> tuple[re.Pattern[str] | None, frozenset[str], int]:
    if not specials:
        return None, frozenset(), 0
    listed = "|".join(re.escape(token) for token in specials)
    prefixes = frozenset(token[:size] for token in specials for size in range(1, len(token)))
    firsts = "".join(sorted({re.escape(token[0]) for token in specials}))
    return re.compile(f"(?=(?:{listed}))([{firsts}])"), prefixes, max(map(len, specials)) - 1


class Said(str):
    """A string that a user sent."""

    __slots__ = ()

    def __add__(self, other: str) -> str:
        if isinstance(other, Said):
            return Said(str.__add__(self, other))
        return Guard.protect(str.__str__(self)) + other

    def __radd__(self, other: str) -> str:
        return other + Guard.protect(str.__str__(self))

    def __str__(self) -> str:
        return Guard.protect(str.__str__(self))

    def __repr__(self) -> str:
        return Guard.protect(str.__repr__(self))

    def __format__(self, spec: str) -> str:
        return format(Guard.protect(str.__str__(self)), spec)

    def __iter__(self) -> Iterator[Said]:
        return (Said(char) for char in str.__iter__(self))


def _still_said(value: Any) -> Any:
    """What is cut out of a user's string is a user's string."""
    if isinstance(value, str):
        return Said(str.__str__(value))
    if isinstance(value, list | tuple):
        return type(value)(_still_said(item) for item in value)
    return value


def _keeping(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def kept(self: Said, *args: Any, **kwargs: Any) -> Any:
        return _still_said(method(self, *args, **kwargs))

    return kept


_CUTTING = (
    "__getitem__ __mod__ __mul__ __rmul__ capitalize casefold center expandtabs join ljust lower lstrip partition "
    "removeprefix removesuffix replace rjust rpartition rsplit rstrip split splitlines strip swapcase title translate "
    "upper zfill"
)
for _name in _CUTTING.split():
    setattr(Said, _name, _keeping(getattr(str, _name)))


def say(value: Any) -> Any:
    """Plain data with every string in it, keys too, marked as a user's."""
    if isinstance(value, str):
        return Said(value)
    if isinstance(value, list):
        return [say(item) for item in value]
    if isinstance(value, dict):
        return {Said(key): say(item) for key, item in value.items()}
    return value


def _guarded_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result, made of a user's string, is one too."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        made_of_said = len(args) > place and isinstance(args[place], Said)
        return _still_said(result) if made_of_said and isinstance(result, str) else result

    return filtered


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **rest: Any) -> Said:
    """JSON without HTML escapes, as Hugging Face's templates expect it."""
    sort_keys = bool(rest.get("sort_keys", False))
    return Said(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys))


def make_environment() -> Any:
    """The sandbox, with the names that templates written for Hugging Face's library may use."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}…{% endgeneration %} marks what the model wrote; here it only shows its body."""

        tags = {"generation"}  # noqa: RUF012 - how jinja2 declares it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        """Methods of the template's own strings join and replace in C, past `Said.__str__`; so not with `Said`s."""

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            if isinstance(function, BuiltinMethodType) and type(getattr(function, "__self__", None)) is str:
                if function.__name__ == "join" and len(args) == 1:
                    args = ([str(item) if isinstance(item, str) else item for item in args[0]],)
                args = tuple(str(item) if isinstance(item, Said) else item for item in args)
            return super().call(context, function, *args, **kwargs)

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            # The sandbox's own answer prints as nothing; an attempt should be seen.
            raise SecurityError(f"access to {attribute!r:.60} is unsafe")

    def refuse(message: object) -> None:
        raise Refusal(str(message))

    class Refusal(TemplateError):
        """The template says that these messages are not for it."""

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters = {name: _guarded_filter(function) for name, function in environment.filters.items()}
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(str(form))
    failures = (TemplateError, SyntaxError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError)
    environment.extend(refusal=Refusal, failures=failures, compiled=lru_cache(maxsize=8)(environment.from_string))
    return environment


def answer(environment: Any, data: bytes) -> dict[str, Any]:
    """Render one conversation; every failure is an answer, and after a grave one this process ends."""
    try:
        request = json.loads(data)
        # The JSON is ASCII, so a character that its escape does not name is in none of the strings.
        char = next(chr(code) for code in GUARDS if json.dumps(chr(code))[1:-1].encode() not in data)
        Guard.set(char, tuple(request["specials"]))
        size, parts = 0, []
        template = environment.compiled(request["source"])
        for part in template.generate(say(request["said"]) | request["context"]):
            size += len(part)
            if size > MAX_TEXT:
                return {"kind": "error", "text": f"it writes more than {MAX_TEXT:,} characters"}
            parts.append(part)
        return {"kind": "text", "text": "".join(parts), "guard": char}
    except environment.refusal as error:
        return {"kind": "refused", "text": _line(error)}
    except (MemoryError, RecursionError) as error:
        reason = "out of memory" if isinstance(error, MemoryError) else "nested too deep"
        return {"kind": "error", "text": reason, "ending": True}
    except environment.failures as error:
        return {"kind": "error", "text": f"{type(error).__name__}: {_line(error)}"}


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else ""


def main(places: str) -> None:
    """Limit this process, then answer requests until the other side closes the pipe."""
    sys.path.extend(place for place in places.split(":") if place not in sys.path)
    environment = make_environment()
    environment.from_string("{{ 'warm' | trim }}").render()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    inward, outward = sys.stdin.buffer, sys.stdout.buffer
    outward.write(b"!")
    outward.flush()
    while len(head := inward.read(8)) == 8:
        data = inward.read(int.from_bytes(head, "big"))
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS, hard))
        reply = json.dumps(answer(environment, data)).encode()
        outward.write(len(reply).to_bytes(8, "big") + reply)
        outward.flush()


if __name__ == "__main__":
    main(sys.argv[1])
