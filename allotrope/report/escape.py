"""Foreign text made harmless: prompts, names and messages come from files that anybody may have written."""

from __future__ import annotations

import html
import json
import re
from typing import Any

# What could turn the reading order, hide text or end a document: controls, bidirectional marks, halves of surrogates.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|!~$])")


def visible(text: str) -> str:
    """The text with what would not be seen, or would move what is seen, written out: `⟨U+202E⟩`."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text.replace("\r\n", "\n"))


def markup(text: str) -> str:
    """The text inside an element or a quoted attribute."""
    return html.escape(visible(text))


def script_json(value: Any) -> str:
    """JSON inside a script element, which no text in it can end; halves of surrogates stay escaped."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e")


def markdown(text: str) -> str:
    """The text in a line of Markdown, or in a cell of its tables."""
    return _MARKDOWN.sub(r"\\\1", html.escape(visible(text), quote=False)).replace("\n", " ")


def fenced(text: str) -> str:
    """The text as a block of code that no text in it can end."""
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * max(3, *(run + 1 for run in runs)) if runs else "```"
    return f"{fence}text\n{visible(text)}\n{fence}"
