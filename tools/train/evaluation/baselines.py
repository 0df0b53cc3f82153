"""What a model's bits per byte stand beside: an interpolated trigram over its own tokens, gzip and xz.

The trigram is interpolated Kneser-Ney with one discount per order, estimated as n1 / (n1 + 2·n2) from the counts of
counts (Ney, Essen and Kneser 1994): the usual strong n-gram baseline without anything to tune.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def gzip_bits(text: bytes) -> float:
    """Bits per byte of `gzip -9`."""
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


def xz_bits(text: bytes) -> float:
    """Bits per byte of `xz -9`."""
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


@dataclass(frozen=True)
class _Order:
    """Counts of one order: contexts followed by a word. A context of no words is 0."""

    keys: Array  # context · vocab + word, ascending
    counts: Array
    contexts: Array  # ascending
    totals: Array  # over the words that follow
    kinds: Array  # how many different words follow
    discount: float

    @staticmethod
    def of(keys: Array, counts: Array, vocab: int) -> _Order:
        contexts, first = np.unique(keys // vocab, return_index=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        kinds = np.diff(np.append(first, len(keys)))
        return _Order(keys, counts, contexts, np.add.reduceat(counts, first), kinds, discount)

    def mix(self, contexts: Array, words: Array, lower: Array, vocab: int) -> Array:
        """Probabilities: what is seen, discounted, and the lower order's for what the discount left."""
        count = _look(self.keys, self.counts, contexts * vocab + words)
        total = _look(self.contexts, self.totals, contexts)
        kinds = _look(self.contexts, self.kinds, contexts)
        seen = np.maximum(total, 1)
        mixed = np.maximum(count - self.discount, 0) / seen + self.discount * kinds / seen * lower
        return np.where(total > 0, mixed, lower)


class Trigram:
    """Trained on documents of token ids; each is read as if two begin marks stood before it."""

    def __init__(self, documents: Iterable[Sequence[int]], vocab: int, begin: int) -> None:
        if vocab**3 >= 2**63:
            raise ValueError(f"a vocabulary of {vocab} has more trigrams than int64 can name")
        self._vocab, self._begin = vocab, begin
        stream = np.concatenate([self._grams(ids) for ids in documents])
        self.tokens = len(stream)
        keys, counts = np.unique(stream, return_counts=True)
        # Kneser-Ney: a lower order counts in how many different contexts a word was seen, not how often.
        pairs, pair_counts = np.unique(keys % vocab**2, return_counts=True)
        words, word_counts = np.unique(pairs % vocab, return_counts=True)
        self._orders = (
            _Order.of(words, word_counts, vocab),
            _Order.of(pairs, pair_counts, vocab),
            _Order.of(keys, counts, vocab),
        )

    def surprise(self, ids: Sequence[int]) -> float:
        """The nats of a document's tokens."""
        return float(-np.log(self.probabilities(ids)).sum()) if ids else 0.0

    def probabilities(self, ids: Sequence[int]) -> Array:
        """Of each token, given the two before it."""
        grams, v = self._grams(ids), self._vocab
        words, contexts = grams % v, grams // v
        found: Array = np.full(len(grams), 1 / v)
        for order, context in zip(self._orders, (np.zeros_like(contexts), contexts % v, contexts), strict=True):
            found = order.mix(context, words, found, v)
        return found

    def _grams(self, ids: Sequence[int]) -> Array:
        padded = np.array([self._begin, self._begin, *ids], dtype=np.int64)
        return (padded[:-2] * self._vocab + padded[1:-1]) * self._vocab + padded[2:]


def _look(keys: Array, values: Array, wanted: Array) -> Array:
    """The values of the wanted keys; 0 for one that is not there."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
