"""docsum's task: a function, ` TL;DR:`, then its docstring's first sentence; in ROUGE, beside two baselines."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Sequence
from typing import Any

from allotrope.errors import UsageError
from tools.train.corpus.forms import docsum_prompt
from tools.train.evaluation import intervals
from tools.train.evaluation.lm import LanguageModel
from tools.train.evaluation.texts import Function

TOKENS = 64
MEASURES = ("rouge1", "rouge2", "rougeL")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def summarise(model: LanguageModel, functions: Sequence[Function]) -> list[str]:
    """The model's summaries, greedily; a function too long for the context is cut from the left."""
    room = model.context - TOKENS - 1
    asked = [model.ids(docsum_prompt(function.code)) for function in functions]
    written = model.write([[model.begin, *ids[-room:]] for ids in asked], TOKENS)
    return [model.tokenizer.decode(text.ids).strip().split("\n")[0] for text in written]


def name_in_words(function: Function) -> str:
    """`read_HTTPHeader2` → "read http header 2"."""
    return " ".join(_WORD.findall(function.name)).lower()


def comment_or_line(function: Function) -> str:
    """The first comment, or without one the first line of the body."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(function.code).readline):
            if token.type == tokenize.COMMENT:
                return token.string.lstrip("#! ")
    except (tokenize.TokenError, IndentationError):  # code of another Python: the lines remain
        pass
    lines = [line.strip() for line in function.code.splitlines() if line.strip()]
    opening = next((place for place, line in enumerate(lines) if line.endswith(":")), 0)
    return lines[min(opening + 1, len(lines) - 1)]


BASELINES: dict[str, Callable[[Function], str]] = {
    "name in words": name_in_words,
    "first comment or line": comment_or_line,
}


def score(references: Sequence[str], texts: Sequence[str]) -> list[dict[str, float]]:
    """ROUGE F1 by the rouge-score package, with its stemmer."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UsageError("rouge-score is not installed", remedy="pip install rouge-score") from error
    scorer = RougeScorer(list(MEASURES), use_stemmer=True)
    return [
        {name: float(found.fmeasure) for name, found in scorer.score(reference, text).items()}
        for reference, text in zip(references, texts, strict=True)
    ]


def measure(model: LanguageModel, functions: Sequence[Function]) -> tuple[dict[str, Any], list[str]]:
    """Scores of the model and of the baselines, and how far apart they are on the same examples; and the summaries."""
    references, texts = [function.summary for function in functions], summarise(model, functions)
    own = score(references, texts)
    found: dict[str, Any] = {
        "examples": len(functions),
        "tokens": TOKENS,
        "model": _means(own),
        "baselines": {},
        "empty": sum(not text for text in texts),
        "exact": sum(text == reference for text, reference in zip(texts, references, strict=True)),
    }
    for label, baseline in BASELINES.items():
        other = score(references, [baseline(function) for function in functions])
        gains = {name: [a[name] - b[name] for a, b in zip(own, other, strict=True)] for name in MEASURES}
        found["baselines"][label] = {
            **_means(other),
            "gain": {name: sum(gain) / len(gain) for name, gain in gains.items()},
            "gain_interval": {name: intervals.mean(gain) for name, gain in gains.items()},
        }
    return found, texts


def _means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(score[name] for score in scores) / len(scores) for name in MEASURES}
