"""Conversations for tinychat, drawn by rule from documented functions: the same functions, the same conversations."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence

from tools.train.corpus.chat_facts import Facts, facts
from tools.train.corpus.chat_phrases import SmallTalk, phrases
from tools.train.corpus.chat_questions import Question, questions
from tools.train.corpus.forms import chatml

Message = dict[str, str]
Row = dict[str, object]

_MOST = {"train": 150_000, "heldout": 3_000}
_SHORT_LINES, _SHORT = 15, 600  # of a function: lines, characters
_SHORT_CONVERSATION = 1_500  # characters: about 512 tokens of a vocabulary of 2,500
_LONG_CONVERSATION = 3_800  # about 1,400 tokens
_LONG_SHARE = 0.12  # of held-out questions; in training none, so that length is extrapolated
_HELD_OUT = 8  # one in so many sentences and topics is never trained on


def conversations(pairs: Sequence[dict[str, str]], split: str) -> Iterator[Row]:
    """Question, greeting and refusal conversations, mixed, for "train" or "heldout"."""
    rng = random.Random(f"tinychat {split}")
    short = [pair for pair in pairs if _is_short(pair["code"])]
    if not short:
        return
    maker = _Maker(split, rng, short)
    told: set[str] = set()
    for turn in range(_MOST[split]):
        if turn % len(short) == 0:
            rng.shuffle(short)
        chance = rng.random()
        if chance < 0.8:
            messages, kind = maker.about_functions(short[turn % len(short)]), "question"
        elif chance < 0.88:
            messages, kind = maker.small_talk(), "greeting"
        else:
            messages, kind = maker.off_topic(), "refusal"
        text = chatml(messages)
        if split == "train" or text not in told:  # to learn from it twice does no harm, to test with it twice does
            yield {"messages": messages, "kind": kind}
        told.add(text)


def _is_short(code: str) -> bool:
    return code.count("\n") < _SHORT_LINES and len(code) <= _SHORT and code.isascii()


class _Maker:
    """Draws conversations of one split."""

    def __init__(self, split: str, rng: random.Random, short: Sequence[dict[str, str]]) -> None:
        self.split, self.rng, self.short = split, rng, short
        self.phrases = phrases()
        self.topics = [topic for topic in self.phrases.topics if _split_of(topic) == split]

    def about_functions(self, pair: dict[str, str]) -> list[Message]:
        """One function and one to four questions, or, held out and long, several functions."""
        messages = self._opened()
        if self.rng.random() < 0.08:
            messages += self._pleasantry(self.phrases.small_talk["greeting"])
        if self.split == "heldout" and self.rng.random() < _LONG_SHARE:
            while len(chatml(messages)) < _LONG_CONVERSATION - 2 * _SHORT:
                messages += self._function(self.rng.choice(self.short))
        messages += self._function(pair)
        if self.rng.random() < 0.07 and self._room(messages):
            messages += self._refused()
        if self.rng.random() < 0.12 and self._room(messages):
            messages += self._pleasantry(self.phrases.small_talk[self.rng.choice(("thanks", "thanks", "bye"))])
        return messages

    def small_talk(self) -> list[Message]:
        """One to three pleasantries."""
        messages = self._opened()
        for _ in range(self.rng.choice((1, 1, 2, 2, 3))):
            messages += self._pleasantry(self.rng.choice([*self.phrases.small_talk.values()]))
        return messages

    def off_topic(self) -> list[Message]:
        """One to three questions that it does not answer."""
        messages = self._opened()
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            messages += self._refused()
        return messages

    def _opened(self) -> list[Message]:
        return [{"role": "system", "content": self.rng.choice(self.phrases.systems)}]

    def _function(self, pair: dict[str, str]) -> list[Message]:
        """The function is shown with the first question; further ones refer to it."""
        known = facts(pair["code"])
        open_questions = questions(known, pair["summary"], self._decoys(known), self.rng)
        messages: list[Message] = []
        for at in range(self.rng.choice((1, 2, 2, 3, 3, 4))):
            if not open_questions:
                break
            chosen = self.rng.choices(open_questions, [question.weight for question in open_questions])[0]
            open_questions = [question for question in open_questions if question.kind != chosen.kind]
            asked = self._asked(chosen)
            messages += _exchange(self._shown(pair["code"], asked) if at == 0 else asked, chosen.answer)
            if len(chatml(messages)) > _SHORT_CONVERSATION - 300:
                break
        return messages

    def _asked(self, question: Question) -> str:
        """One phrasing, sometimes with an opening."""
        phrase = self.rng.choice(self.phrases.questions[question.kind])
        return self.rng.choice(self.phrases.openings) + phrase.format(question.about)

    def _shown(self, code: str, asked: str) -> str:
        form = self.rng.choice(self.phrases.showing)
        return form.replace("{asked}", asked).replace("{code}", code)

    def _decoys(self, known: Facts) -> list[str]:
        """A few names that other functions have: plausible, and mostly not called in this one."""
        return [name for pair in self.rng.choices(self.short, k=3) if (name := pair["name"]) != known.name]

    def _pleasantry(self, talk: SmallTalk) -> list[Message]:
        """A sentence of this split, with some end and case."""
        while True:
            said = self.rng.choice(talk.said)
            said = (said.lower() if self.rng.random() < 0.2 else said) + self.rng.choice(self.phrases.endings)
            if _split_of(said) == self.split:
                return _exchange(said, self.rng.choice(talk.replies))

    def _refused(self) -> list[Message]:
        topic = self.rng.choice(self.topics)
        if self.rng.random() < 0.5:
            return _exchange(self.rng.choice(self.phrases.topics[topic]), self.phrases.reply)
        asked = self.rng.choice(self.phrases.about).format(topic)
        return _exchange(asked, self.phrases.reply_about.format(topic))

    def _room(self, messages: list[Message]) -> bool:
        return len(chatml(messages)) < _SHORT_CONVERSATION - 200


def _exchange(asked: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _split_of(text: str) -> str:
    """Which half a sentence or topic belongs to, by a hash: so that no reply in the evaluation was learnt by heart."""
    return "train" if hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT else "heldout"
