"""The tokenizer that everything else uses: one face, whatever files the vocabulary came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Protocol

from allotrope.errors import RequestError, UsageError
from allotrope.tokenizers.chat import Conversation, Message, Template
from allotrope.tokenizers.detokenizer import Detokenizer, join

NONE = "none"  # the kind that stands for no tokenizer at all
LONGEST_TEXT = 16 << 20  # bytes
ALWAYS_READ = 64 << 10  # bytes of text that take no time worth a thought
LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most that many tokens


Frame = tuple[list[int], list[int]]  # ids before and after a text


class Vocabulary(Protocol):
    """Text to ids and back, without what a checkpoint's settings add."""

    size: int  # one more than the largest id
    leading_space: bool  # the vocabulary puts a space before a text, so decoding drops one

    @property
    def frame(self) -> Frame | None:
        """What its own file puts around a text, where that says anything."""

    @property
    def specials(self) -> Mapping[str, int]:
        """The tokens that are cut out of text whole and that decoding hides."""

    def token_id(self, token: str) -> int | None:
        """The id of a token written exactly so."""

    def encode(self, text: str, *, parse_special: bool, at_start: bool = True) -> list[int]:
        """The text's ids; `at_start=False` for a text that continues another one."""

    def piece(self, token: int) -> bytes:
        """The bytes that an id stands for; nothing for an id that no token has."""


class Tokenizer:
    """A vocabulary with the checkpoint's settings: what goes around a text, what ends one, how chats are written.

    `prefix` and `suffix` are the ids that `encode(special=True)` puts around a text, as the checkpoint's own
    tokenizer does. `eos_ids` are all ids that end a generation.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        kind: str,
        bos_id: int | None,
        eos_ids: Sequence[int],
        pad_id: int | None,
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        templates: Mapping[str, Template] | None = None,
    ) -> None:
        self.kind, self.vocab_size = kind, vocabulary.size
        self.bos_id, self.eos_ids, self.pad_id = bos_id, tuple(eos_ids), pad_id
        self.prefix, self.suffix = tuple(prefix), tuple(suffix)
        self._vocabulary, self._templates = vocabulary, dict(templates or {})
        self._hidden = frozenset(vocabulary.specials.values())
        self._shown, self._spelt = cache(self._visible), cache(self._piece)  # of streams: a look per token
        self._most_tokens: int | None = None

    def encode(self, text: str, special: bool = True, *, allow_special: bool = True) -> list[int]:
        """The ids of a text.

        `special` adds the beginning and end as the checkpoint does. A special token's name inside the text becomes
        that token, as everywhere in prompts (fill-in-the-middle needs it); with `allow_special=False` it stays text.
        """
        self._check(text)
        ids = self._vocabulary.encode(text, parse_special=allow_special)
        return [*self.prefix, *ids, *self.suffix] if special else ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD, and ids without a token nothing."""
        piece = self._visible if skip_special else self._piece
        return join(map(piece, ids), strip_space=self._vocabulary.leading_space)

    def stream(self, after: Sequence[int] = (), skip_special: bool = True) -> Detokenizer:
        """A detokenizer for ids that come one by one.

        `after` are the ids before them, usually the prompt's: they give no text, but a first space is only dropped
        where no text came before, and a character that the prompt left unfinished can be completed.
        """
        piece = self._shown if skip_special else self._spelt
        begun = not self._vocabulary.leading_space or any(map(piece, after))
        stream = Detokenizer(piece, strip_space=not begun)
        for token in after[-LONGEST_CHARACTER:] if begun else ():
            stream.push(token)
        return stream

    @property
    def reads_text(self) -> bool:
        """Whether there is a vocabulary; without one only ids go in and out."""
        return self.kind != NONE

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used without naming a template."""
        return "default" in self._templates

    def chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
        template: str = "default",
    ) -> str:
        """The text of a conversation, as the checkpoint's template writes it."""
        conversation = Conversation(messages, add_generation_prompt, tools, variables or {})
        return "".join(part.text for part in self._template(template).stretches(conversation))

    def chat_ids(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
        template: str = "default",
    ) -> list[int]:
        """The ids of a conversation. Special tokens come from the template only, never from what a message says."""
        conversation = Conversation(messages, add_generation_prompt, tools, variables or {})
        ids: list[int] = []
        for place, part in enumerate(self._template(template).stretches(conversation)):
            self._check(part.text)
            ids += self._vocabulary.encode(part.text, parse_special=part.parse_special, at_start=place == 0)
        return ids

    def _template(self, name: str) -> Template:
        if name in self._templates:
            return self._templates[name]
        if not self._templates:
            raise UsageError("this checkpoint has no chat template", remedy="give the prompt as plain text")
        raise UsageError(f"no chat template {name[:40]!r}", remedy=f"there is {', '.join(sorted(self._templates))}")

    def limit(self, tokens: int) -> None:
        """Refuse texts that so many tokens cannot hold before they are read: reading a hostile one takes minutes."""
        self._most_tokens = tokens

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, map(self._vocabulary.piece, range(self.vocab_size))), default=1)

    def _check(self, text: str) -> None:
        size = _bytes_of(text)
        if size > LONGEST_TEXT:
            raise RequestError(f"the text has {size:,} bytes; the limit is {LONGEST_TEXT:,}")
        if size <= ALWAYS_READ or self._most_tokens is None or not self.vocab_size:
            return
        if size > self._most_tokens * self._longest:
            raise RequestError(
                f"the text has {size:,} bytes, more than {self._most_tokens:,} tokens can hold",
                remedy="shorten the prompt",
            )

    def _piece(self, token: int) -> bytes:
        if token < 0:
            raise RequestError(f"token id {token} is negative")
        return self._vocabulary.piece(token)

    def _visible(self, token: int) -> bytes:
        return b"" if token in self._hidden else self._piece(token)


def _bytes_of(text: str) -> int:
    """How many bytes; half of a surrogate pair has none, and the libraries own errors for it vary."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(f"the text has half a surrogate pair at character {error.start}") from error
