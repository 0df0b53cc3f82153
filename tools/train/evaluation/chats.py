"""tinychat's task: answer in ChatML and stop; beyond its training length, too.

transformers has no dynamic NTK and no log-n of the first Qwen, so conversations that are longer than `seq_length` are
answered by an engine that Allotrope builds in fp32; the shorter ones by transformers.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

from tools.train.corpus.chat_phrases import phrases
from tools.train.evaluation import intervals
from tools.train.evaluation.lm import LanguageModel
from tools.train.evaluation.texts import Conversation

TOKENS = 128
LONG_TO, LONG_COUNT = 1536, 64  # prompt and answer together; how many long conversations
STOP = "<|im_end|>"
QUESTION, SUMMARY, TALK = "question", "summary", "small talk"
NAME = re.escape("{}")  # in a phrasing, where a name goes


@dataclass(frozen=True)
class Answer:
    """What the model said at the end of a conversation, and what the conversation has there."""

    kind: str  # what was asked: about code its topic, else the conversation's kind
    prompt_tokens: int
    text: str
    stopped: bool  # with the stop token, within the limit
    expected: str

    @property
    def right(self) -> bool:
        """Word for word: a question about code has one answer, a pleasantry one of a few."""
        replies = next((talk.replies for talk in phrases().small_talk.values() if self.expected in talk.replies), ())
        return self.text in {self.expected, *replies}

    @property
    def checkable(self) -> bool:
        """Whether the function's source decides what is right; how a summary is worded, nothing decides."""
        return self.kind in phrases().questions and self.kind != SUMMARY


def asked(conversation: Conversation) -> str:
    """What the last question is about; the kind of a conversation that is not about code."""
    if conversation.kind != QUESTION:  # a question about code without any code belongs there
        return conversation.kind
    question = conversation.messages[-2]["content"]
    return next((topic for topic, pattern in _patterns().items() if pattern.search(question)), TALK)


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Each topic's phrasings, standing alone on a line or after an opening."""
    begin = "|".join(re.escape(opening) for opening in sorted({*phrases().openings}, reverse=True))
    return {
        topic: re.compile(
            rf"^(?:{begin})(?:{'|'.join(re.escape(said).replace(NAME, '.+') for said in ways)})$", re.MULTILINE
        )
        for topic, ways in phrases().questions.items()
    }


def fitting(model: LanguageModel, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Those that leave room for an answer within the training length."""
    return [one for one in conversations if _length(model, one.messages) + TOKENS <= model.context]


def answer(model: LanguageModel, conversations: Sequence[Conversation]) -> list[Answer]:
    """Greedy answers by transformers."""
    prompts, stop = [model.tokenizer.chat_ids(one.messages[:-1]) for one in conversations], _stop(model)
    written = model.write(prompts, TOKENS, ends={*model.tokenizer.eos_ids, stop})
    return [
        Answer(asked(one), len(ids), model.tokenizer.decode(text.ids).strip(), text.last == stop, one.answer)
        for one, ids, text in zip(conversations, prompts, written, strict=True)
    ]


def longer(model: LanguageModel, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Conversations beyond the training length: each one's question, asked after others with their answers.

    Their lengths are spread from just above the training length to the longest.
    """
    shortest, longest = model.context + 1, LONG_TO - TOKENS
    others, found = cycle(reversed(conversations)), list[Conversation]()
    for number, last in enumerate(conversations[:LONG_COUNT]):
        aim = shortest + (longest - shortest) * number // LONG_COUNT
        joined = _turns(last)
        while _length(model, joined) < aim:
            joined = [*_turns(next(others)), *joined]
        if shortest <= _length(model, joined) <= longest:
            found.append(Conversation(tuple(joined), last.kind))
    return found


def answer_long(model: LanguageModel, conversations: Sequence[Conversation]) -> list[Answer]:
    """Greedy answers by an engine of Allotrope's, in fp32, on the same device."""
    from allotrope.api import LLM, SamplingParams
    from allotrope.build import build

    stop = _stop(model)
    prompts = [model.tokenizer.chat_ids(one.messages[:-1]) for one in conversations]
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        build(str(model.folder), engine, device=model.device.kind, dtype="fp32", tune="off")
        with LLM(engine) as llm:
            params = SamplingParams(max_tokens=TOKENS, temperature=0, stop_token_ids=[stop])
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    return [
        Answer(
            asked(one), len(ids), out.outputs[0].text.strip(), _ended_with(out.outputs[0].token_ids, stop), one.answer
        )
        for one, ids, out in zip(conversations, prompts, outputs, strict=True)
    ]


def measure(answers: Sequence[Answer]) -> dict[str, Any]:
    """Shares of answers that stop and that are right, together and per kind."""
    kinds: dict[str, list[Answer]] = defaultdict(list)
    for one in answers:
        kinds[one.kind].append(one)
    stopped = sum(one.stopped for one in answers)
    checked = [one for one in answers if one.checkable]
    right = sum(one.right for one in checked)
    return {
        "conversations": len(answers),
        "tokens": TOKENS,
        "prompt_tokens": [min(one.prompt_tokens for one in answers), max(one.prompt_tokens for one in answers)],
        "stopped": stopped / len(answers),
        "stopped_interval": intervals.share(stopped, len(answers)),
        "checkable": len(checked),
        "right": right / max(len(checked), 1),
        "right_interval": intervals.share(right, len(checked)) if checked else (0.0, 1.0),
        "kinds": {
            kind: {
                "answers": len(some),
                "stopped": sum(one.stopped for one in some) / len(some),
                "right": sum(one.right for one in some) / len(some),
            }
            for kind, some in sorted(kinds.items())
        },
    }


def _stop(model: LanguageModel) -> int:
    [token] = model.tokenizer.encode(STOP, special=False)
    return token


def _turns(one: Conversation) -> list[Mapping[str, str]]:
    """What user and assistant say; a system message may only stand first."""
    return [message for message in one.messages if message["role"] != "system"]


def _length(model: LanguageModel, messages: Sequence[Mapping[str, str]]) -> int:
    """Tokens of the prompt that asks for the last message."""
    return len(model.tokenizer.chat_ids(messages[:-1]))


def _ended_with(ids: Sequence[int], stop: int) -> bool:
    return bool(ids) and ids[-1] == stop
