"""tinychat's conversations: every answer is true of the code, and what is tested was not learnt by heart."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterator

import pytest

from tools.train.corpus import chat
from tools.train.corpus.chat_facts import facts
from tools.train.corpus.chat_phrases import phrases
from tools.train.corpus.chat_questions import questions
from tools.train.corpus.forms import chatml

ASKED = textwrap.dedent(
    """
    @cached
    async def find(self, name, *, limit=10, **rest):
        for item in await self.items(name):
            if not item:
                raise KeyError(name)
        def inner():
            while True:
                yield walk()
        if limit < 0:
            raise errors.BadLimit
        return inner
    """
).strip()


def test_facts_are_the_functions_own() -> None:
    found = facts(ASKED)
    assert found.parameters == ("self", "name", "limit", "**rest")
    assert found.defaults == (("name", None), ("limit", "10"))
    assert found.raises == ("KeyError", "BadLimit")
    assert (found.is_async, found.returns, found.yields, found.loops) == (True, True, False, ("for",))
    assert found.calls == ("items", "KeyError")
    assert found.decorators == ("@cached",)


def test_answers_say_what_the_source_does() -> None:
    answers: dict[str, set[str]] = {}
    for seed in range(40):
        for question in questions(facts(ASKED), "Find it.", ["walk", "items", "leap"], random.Random(seed)):
            answers.setdefault(question.kind, set()).add(question.answer)
    assert answers == {
        "summary": {"Find it."},
        "name": {"It is called find."},
        "count": {"It takes four parameters."},
        "names": {"Its parameters are self, name, limit and **rest."},
        "first": {"The first parameter is self."},
        "last": {"The last parameter is **rest."},
        "method": {"Yes, it is a method: it takes self."},
        "default": {"name has no default.", "The default of limit is 10."},
        "returns": {"Yes, it returns a value."},
        "raises": {"Yes, it raises KeyError and BadLimit."},
        "exception": {"It raises KeyError and BadLimit."},
        "loop": {"Yes, it has a for loop."},
        "calls": {"Yes, it calls items.", "Yes, it calls KeyError.", "No, it does not call leap."},
        "async": {"Yes, it is async."},
        "decorator": {"Yes, it is decorated with @cached."},
    }


def test_nothing_is_asked_that_could_be_argued_about() -> None:
    def kinds(code: str) -> set[str]:
        return {question.kind for question in questions(facts(code), "", [], random.Random(0))}

    plain = "def f(x):\n    return x"
    assert {"loop", "raises", "exception"} <= kinds(plain)
    assert "loop" not in kinds("def f(x):\n    return [y for y in x]")
    assert not {"loop", "raises", "exception"} & kinds("def f(x):\n    def g():\n        raise E\n    return g")
    assert "exception" not in kinds("def f(x):\n    if x:\n        raise E\n    raise")
    assert "calls" not in kinds(plain)


def _pairs() -> list[dict[str, str]]:
    made = ((f"find_{i}", f"def find_{i}(key, n={i}):\n    look_{i}(key)\n    return n") for i in range(60))
    return [{"name": name, "code": code, "summary": f"Find the key of {name}."} for name, code in made]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_MOST", {"train": 900, "heldout": 900})


@pytest.mark.usefixtures("few")
def test_conversations_are_the_same_every_time_and_of_every_kind() -> None:
    told = [*chat.conversations(_pairs(), "train")]
    assert told == [*chat.conversations(_pairs(), "train")]
    kinds = [row["kind"] for row in told]
    assert {kind: kinds.count(kind) > 40 for kind in kinds} == dict.fromkeys(("question", "greeting", "refusal"), True)


@pytest.mark.usefixtures("few")
def test_conversations_are_well_formed_and_lengths_as_planned() -> None:
    train, test = ([*chat.conversations(_pairs(), split)] for split in ("train", "heldout"))
    for row in train + test:
        system, *turns = row["messages"]
        assert system["role"] == "system"
        assert [said["role"] for said in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert turns and all(said["content"].strip() for said in turns)
    assert max(len(chatml(row["messages"])) for row in train) <= 2000
    assert len({chatml(row["messages"]) for row in test}) == len(test) > 500
    assert 3000 < max(len(chatml(row["messages"])) for row in test) <= 5500


@pytest.mark.usefixtures("few")
def test_no_small_talk_and_no_topic_is_in_both_splits() -> None:
    def said(split: str) -> Iterator[str]:
        for row in chat.conversations(_pairs(), split):
            yield from (m["content"] for m in row["messages"] if m["role"] == "user" and row["kind"] != "question")

    train, test = set(said("train")), set(said("heldout"))
    assert train and test and not train & test
    asked = {topic: set(said) for topic, said in phrases().topics.items()}
    assert len(asked) >= 30
    assert not {topic for topic in asked if asked[topic] & train} & {topic for topic in asked if asked[topic] & test}


def test_every_kind_of_question_can_be_put_into_words() -> None:
    kinds = {
        question.kind for seed in range(9) for question in questions(facts(ASKED), "", ["leap"], random.Random(seed))
    }
    assert kinds == set(phrases().questions)
    assert all(said.format("name") for kind in phrases().questions.values() for said in kind)
