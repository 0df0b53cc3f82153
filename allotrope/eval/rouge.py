"""ROUGE by Google's rouge-score package, as F measures of 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allotrope.errors import UsageError

MEASURES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Scores = dict[str, list[float]]


def scorer(*, stem: bool) -> Any:
    """The package's scorer; `stem` takes words for the same that share a stem."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UsageError("rouge-score is not installed", remedy="pip install 'allotrope[eval]'") from error
    return RougeScorer(list(MEASURES), use_stemmer=stem)


def score(by: Any, references: Sequence[str], texts: Sequence[str]) -> Scores:
    """For each measure one score per text."""
    found = [by.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    return {name: [100 * float(one[name].fmeasure) for one in found] for name in MEASURES}
