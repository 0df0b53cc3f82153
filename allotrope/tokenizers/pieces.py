"""How a token's text becomes bytes, read from a tokenizer.json's decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from allotrope.errors import TokenizerError

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where it prints, else the next character from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printing}
    others = (byte for byte in range(256) if byte not in set(printing))
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}


ALPHABET = byte_alphabet()


def byte_level(token: str) -> bytes:
    """Bytes by GPT-2's alphabet; a token with a character outside it stands for its own text."""
    try:
        return bytes(ALPHABET[char] for char in token)
    except KeyError:
        return token.encode()


def byte_fallback(token: str, replacements: tuple[tuple[str, str], ...] = (("▁", " "),)) -> bytes:
    """Sentencepiece's: <0xAB> is that byte, anything else is text in which ▁ is a space."""
    if match := BYTE_TOKEN.fullmatch(token):
        return bytes((int(match[1], 16),))
    for old, new in replacements:
        token = token.replace(old, new)
    return token.encode()


def from_decoder(decoder: object, where: str) -> tuple[Callable[[str], bytes], bool, bool]:
    """(token → bytes, whether a text's first space is dropped, whether added tokens skip the mapping)."""
    if decoder is None:  # then the library joins the tokens with spaces
        return (lambda token: f" {token}".encode()), True, False
    steps = _steps(decoder, where)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return byte_level, False, True
    if kinds == ["Metaspace"]:
        scheme = steps[0].get("prepend_scheme", "always" if steps[0].get("add_prefix_space", True) else "never")
        mark = _string(steps[0].get("replacement", "▁"), where)
        return (lambda token: token.replace(mark, " ").encode()), scheme != "never", False
    return _fallback_steps(steps, where)


def _steps(decoder: object, where: str) -> list[Mapping[str, object]]:
    if not isinstance(decoder, dict):
        raise TokenizerError("decoder is no object", where=where)
    listed = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(listed, list) or not all(isinstance(step, dict) for step in listed) or len(listed) > 16:
        raise TokenizerError("decoder is no list of steps", where=where)
    return listed


def _string(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise TokenizerError(f"decoder: {value!r:.60} is not a string", where=where)
    return value


def _fallback_steps(steps: list[Mapping[str, object]], where: str) -> tuple[Callable[[str], bytes], bool, bool]:
    """Replace…, ByteFallback, Fuse, Strip, as converted sentencepiece vocabularies have them, in that order."""
    replacements: list[tuple[str, str]] = []
    fallback = fused = strip = False
    for step in steps:
        kind = step.get("type")
        pattern = step.get("pattern")
        if kind == "Replace" and not fused and isinstance(pattern, dict) and "String" in pattern:
            content = step.get("content")
            replacements.append((_string(pattern["String"], where), content if isinstance(content, str) else ""))
        elif kind == "ByteFallback" and not fused:
            fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0):
            strip = True
        else:
            raise TokenizerError(
                f"decoder step {kind!r:.40} is not supported here",
                where=where,
                remedy="ByteLevel, Metaspace, or Replace, ByteFallback, Fuse and Strip are",
            )
    pairs = tuple(replacements)
    if fallback:
        return (lambda token: byte_fallback(token, pairs)), strip, False

    def replace_only(token: str) -> bytes:
        for old, new in pairs:
            token = token.replace(old, new)
        return token.encode()

    return replace_only, strip, False
