"""A checkpoint's own chat template, rendered in the helper process and cut so that users' words stay words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from allotrope.errors import TokenizerError
from allotrope.tokenizers.chat import Conversation, Stretch
from allotrope.tokenizers.cutting import any_of
from allotrope.tokenizers.render import RENDERER

# What every template may name besides the conversation; a user's variables cannot replace them.
RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"})


class JinjaTemplate:
    """One template of a checkpoint, with the special tokens that only it may write."""

    def __init__(self, source: str, names: Mapping[str, str], specials: Mapping[str, int], where: str) -> None:
        self._source, self._names, self._where = source, dict(names), where
        self._specials = sorted(specials)
        self._cut = any_of(self._specials)
        self._single = [token for token in specials if len(token) < 2]

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """The rendered text: in one part, or cut at the template's special tokens where users wrote such themselves.

        The renderer puts a guard character inside every special token that a user's string spells, so the ones
        that are whole are the template's.
        """
        if self._single:
            raise TokenizerError(
                f"the special token {self._single[0]!r} is one character, which no guard can keep out of messages",
                where=self._where,
            )
        variables = {key: value for key, value in conversation.variables.items() if key not in RESERVED}
        said = {**variables, "messages": list(conversation.messages), "tools": conversation.tools}
        context = {**self._names, "add_generation_prompt": conversation.add_generation_prompt}
        text, guard = RENDERER.render(self._source, context, said, self._specials, self._where)
        plain = text.replace(guard, "")
        whole = list(self._cut.finditer(text)) if self._cut else []
        if self._cut is None or _same_places(text, whole, list(self._cut.finditer(plain)), guard):
            return [Stretch(plain, True)]
        parts: list[Stretch] = []
        begin = 0
        for match in whole:
            parts += [Stretch(text[begin : match.start()].replace(guard, ""), False), Stretch(match[0], True)]
            begin = match.end()
        parts.append(Stretch(text[begin:].replace(guard, ""), False))
        return [part for part in parts if part.text]


def _same_places(text: str, guarded: list[re.Match[str]], plain: list[re.Match[str]], guard: str) -> bool:
    """Whether without its guards the text shows the same special tokens in the same places: they guarded nothing."""
    if len(guarded) != len(plain):
        return False
    guards = begin = 0
    for kept, bare in zip(guarded, plain, strict=True):
        guards += text.count(guard, begin, kept.start())
        begin = kept.start()
        if (kept.start() - guards, kept[0]) != (bare.start(), bare[0]):
            return False
    return True
