"""Bits per byte of held-out text, beside a trigram, gzip and xz; and what rounded weights cost there.

A document is read after the mark that begins one and told up to and including its end mark, so the bits are those of
a code that can be undone. Bytes are the text's own, in UTF-8. The compressors get all documents in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tools.train.evaluation import baselines, intervals, quantised
from tools.train.evaluation.lm import LanguageModel
from tools.train.evaluation.texts import Text

METHOD = (
    "whole documents after their begin mark, end marks counted; beyond the context, windows overlap by half of it, so "
    "each token is told at least half a context; fp32"
)
CASES: tuple[tuple[str, bool], ...] = (  # format, whether the embedding (and the head tied to it) as well
    ("int8 per channel", False),
    ("int8 per channel", True),
    ("int4 groups of 32", False),
    ("int4 groups of 32, with offset", False),
)


def measure(text: Text, nats: Sequence[float], trigram: baselines.Trigram | None) -> dict[str, Any]:
    """The figures, given what each document costs the model."""
    size, bits = len(text.content), [cost / math.log(2) for cost in nats]
    found = {
        "documents": len(text.documents),
        "bytes": size,
        "tokens": text.tokens,
        "bits_per_byte": sum(bits) / size,
        "bits_per_byte_interval": intervals.ratio(bits, text.sizes),
        "perplexity": math.exp(sum(nats) / text.tokens),
        "gzip_9": baselines.gzip_bits(text.content),
        "xz_9": (xz := baselines.xz_bits(text.content)),
        "below_xz": 1 - sum(bits) / size / xz,
    }
    if trigram is not None:
        costs = [trigram.surprise(ids[1:]) / math.log(2) for ids in text.documents]
        found["trigram"] = sum(costs) / size
        found["trigram_trained_on_tokens"] = trigram.tokens
    return found


def rounded(model: LanguageModel, text: Text) -> dict[str, Any]:
    """For each format what it adds to the perplexity, as a share."""
    exact, found = model.surprise(text.documents), dict[str, Any]()
    for label, embedding in CASES:
        with quantised.rounded(model.network, quantised.FORMATS[label], embedding=embedding) as weights:
            nats = model.surprise(text.documents)
        gains = [b - a for a, b in zip(exact, nats, strict=True)]
        low, high = intervals.ratio(gains, [len(ids) - 1 for ids in text.documents])
        found[f"{label}, embedding too" if embedding else label] = {
            "weights": weights,
            "perplexity": math.exp(sum(nats) / text.tokens),
            "perplexity_cost": math.expm1(sum(gains) / text.tokens),
            "perplexity_cost_interval": (math.expm1(low), math.expm1(high)),
        }
    return {"bytes": len(text.content), "tokens": text.tokens, "formats": found}
