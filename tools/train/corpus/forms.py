"""How rows become the text that a model sees, in training, in evaluation and in models/data alike."""

from __future__ import annotations

from collections.abc import Sequence

PAGE = "\f\n"  # between documents of one text file; no document has a form feed in it
TLDR = " TL;DR:"


def docsum_prompt(code: str) -> str:
    """What docsum is asked: the function, then the mark."""
    return code.rstrip("\n") + TLDR


def docsum_text(code: str, summary: str) -> str:
    """What docsum learns: the question and its answer; the end-of-text token follows."""
    return f"{docsum_prompt(code)} {summary}"


def chatml(messages: Sequence[dict[str, str]]) -> str:
    """A conversation as ChatML, each turn closed."""
    return "".join(f"<|im_start|>{said['role']}\n{said['content']}<|im_end|>\n" for said in messages)


def pages(text: str) -> list[str]:
    """The documents of a file of models/data."""
    return text.split(PAGE)
