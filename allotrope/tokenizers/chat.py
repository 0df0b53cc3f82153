"""Conversations as text: what a template is given, what it gives back, and the first Qwen's, which is built in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from allotrope.errors import RequestError

Message = Mapping[str, object]
MAX_MESSAGES = 1024


@dataclass(frozen=True)
class Conversation:
    """What a template renders. Every string in it is a user's, and can never become a special token."""

    messages: Sequence[Message]
    add_generation_prompt: bool = True
    tools: Sequence[Mapping[str, object]] | None = None
    variables: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.messages) <= MAX_MESSAGES:
            raise RequestError(f"messages has {len(self.messages):,} entries, not 1 to {MAX_MESSAGES:,}")
        for place, message in enumerate(self.messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise RequestError(f"messages[{place}] has no role", remedy='give {"role": …, "content": …}')


class Stretch(NamedTuple):
    """A part of the rendered text that is tokenised by itself."""

    text: str
    parse_special: bool


class Template(Protocol):
    """A way to write conversations."""

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """The text in the parts that are tokenised apart; joined, it is what the model reads."""


class ChatMl:
    """The first Qwen's format. Its publisher has no template: the code tokenises roles, newlines and contents apart."""

    system = "You are a helpful assistant."

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """<|im_start|>role⏎content<|im_end|>⏎ for each message, a system message first in any case."""
        for name in ("tools", "variables"):
            if getattr(conversation, name):
                raise RequestError(f"{name} are given", remedy="this model's own format has no place for them")
        turns = [self._turn(place, message) for place, message in enumerate(conversation.messages)]
        if turns[0][0] != "system":
            turns.insert(0, ("system", self.system))
        return list(self._write(turns, conversation.add_generation_prompt))

    @staticmethod
    def _turn(place: int, message: Message) -> tuple[str, str]:
        role, content = message["role"], message.get("content")
        if role not in (("system", "user", "assistant") if place == 0 else ("user", "assistant")):
            raise RequestError(
                f"messages[{place}].role is {role!r:.40}",
                remedy="this model knows user and assistant, and system for the first message",
            )
        if not isinstance(content, str):
            raise RequestError(f"messages[{place}].content is no string")
        return str(role), content

    @staticmethod
    def _write(turns: list[tuple[str, str]], add_generation_prompt: bool) -> Iterator[Stretch]:
        newline = Stretch("\n", False)
        for place, (role, content) in enumerate(turns):
            if place:
                yield newline
            yield from (Stretch("<|im_start|>", True), Stretch(role, False), newline)
            yield from (Stretch(content, False), Stretch("<|im_end|>", True))
        yield newline
        if add_generation_prompt:
            yield from (Stretch("<|im_start|>", True), Stretch("assistant", False), newline)
