"""What a tokenizer.json puts before and after a text, read from its post-processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from allotrope.errors import TokenizerError
from allotrope.tokenizers.base import Frame


def frame(value: object, where: str) -> Frame | None:
    """The ids around a text; None where the file has no step that adds any."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _unreadable(where)
    match value.get("type"):
        case "Sequence":
            steps = value.get("processors")
            if not isinstance(steps, list):
                raise _unreadable(where)
            found = [around for around in (frame(step, where) for step in steps) if around is not None]
            before = [number for around in reversed(found) for number in around[0]]  # the last step is outermost
            return (before, [number for around in found for number in around[1]]) if found else None
        case "ByteLevel":
            return None  # only moves offsets
        case "TemplateProcessing":
            parts = list(_template(value, where))
            middle = parts.index(None)
            return _ids(parts[:middle]), _ids(parts[middle:])
        case "BertProcessing" | "RobertaProcessing":
            return [_pair_id(value.get("cls"), where)], [_pair_id(value.get("sep"), where)]
        case kind:
            raise TokenizerError(f"post-processor {kind!r:.40} is not supported", where=where)


def _ids(parts: list[int | None]) -> list[int]:
    return [part for part in parts if part is not None]


def _template(value: Mapping[str, object], where: str) -> Iterator[int | None]:
    """The ids of a template for one text, with None where the text goes."""
    single, tokens = value.get("single"), value.get("special_tokens")
    if not isinstance(single, list) or not isinstance(tokens, dict):
        raise _unreadable(where)
    texts = 0
    for item in single:
        special = item.get("SpecialToken") if isinstance(item, dict) else None
        if special is None and isinstance(item, dict) and "Sequence" in item:
            texts += 1
            yield None
            continue
        token = tokens.get(str(special.get("id"))) if isinstance(special, dict) else None
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or not all(isinstance(number, int) for number in ids):
            raise _unreadable(where)
        yield from ids
    if texts != 1:
        raise _unreadable(where)


def _pair_id(pair: object, where: str) -> int:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], int):
        raise _unreadable(where)
    return pair[1]


def _unreadable(where: str) -> TokenizerError:
    return TokenizerError("its post-processor is malformed", where=where, remedy="use the publisher's original file")
