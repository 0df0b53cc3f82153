"""What a model says, for its card: the first examples there are, not chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.train.evaluation.chats import Answer
from tools.train.evaluation.functions import Body
from tools.train.evaluation.lm import LanguageModel
from tools.train.evaluation.texts import Conversation, Function

SHOWN, TOKENS, SEED = 3, 120, 0
OPENINGS = {"tinygpt2": ("Once upon a time", "ROMEO:\n", "One day, a little dog")}
PROMPT_TOKENS = 48  # of a held-out document, where there is no opening of our own

Sample = dict[str, Any]


def bodies(judged: Sequence[Body]) -> list[Sample]:
    """Headers and the bodies written after them."""
    return [_sample(body.prompt, body.text) for body in judged[:SHOWN]]


def summaries(functions: Sequence[Function], texts: Sequence[str]) -> list[Sample]:
    """Functions, their authors' summaries and the model's."""
    told = zip(functions[: 2 * SHOWN], texts, strict=False)
    return [{**_sample(function.code + " TL;DR:", text), "expected": function.summary} for function, text in told]


def chats(conversations: Sequence[Conversation], answers: Sequence[Answer]) -> list[Sample]:
    """The first conversation of each kind."""
    found: dict[str, Sample] = {}
    for one, answer in zip(conversations, answers, strict=True):
        asked = "\n\n".join(f"{message['role']}: {message['content']}" for message in one.messages[:-1])
        found.setdefault(one.kind, {**_sample(asked, answer.text), "expected": answer.expected, "kind": one.kind})
    return list(found.values())


def continuations(model: LanguageModel, name: str, documents: Sequence[str], temperature: float) -> list[Sample]:
    """What follows an opening, or the beginning of a held-out document."""
    openings = [model.ids(text) for text in OPENINGS.get(name, ())]
    prompts = openings or [model.ids(document)[:PROMPT_TOKENS] for document in documents[:SHOWN]]
    written = model.write([[model.begin, *ids] for ids in prompts], TOKENS, temperature=temperature, seed=SEED)
    return [
        {
            **_sample(model.tokenizer.decode(ids), model.tokenizer.decode(text.ids)),
            "temperature": temperature,
            "seed": SEED,
        }
        for ids, text in zip(prompts, written, strict=True)
    ]


def _sample(prompt: str, text: str) -> Sample:
    return {"prompt": prompt, "text": text}
