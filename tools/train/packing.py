"""Windows of tokens for training: pieces drawn in random order, put together, some rearranged to fill in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset

from allotrope.tokenizers import Tokenizer
from tools.train.data import Ids, Pieces, Weights, begin
from tools.train.middle import Cutter
from tools.train.spec import Part

Batch = tuple[
    torch.Tensor, torch.Tensor
]  # ids [rows, window + 1], percent [rows, window] of the ids from the second on
BARE = 0.25  # of the windows begin without the mark before a text, as many prompts do
LEAST = 16  # tokens of a window that are not worth another piece


@dataclass(frozen=True)
class Reading:
    """What is read: each part with its tokens."""

    parts: tuple[Part, ...]
    pieces: tuple[Pieces, ...]
    tokenizer: Tokenizer

    @property
    def odds(self) -> npt.NDArray[np.float64]:
        """How often a piece is drawn from each part, so that the parts have their shares of the tokens."""
        lengths = [len(found.ids) / len(found) for found in self.pieces]
        odds = [part.share / length for part, length in zip(self.parts, lengths, strict=True)]
        return np.array(odds, np.float64) / sum(odds)


class Windows(IterableDataset[Batch]):
    """Batches without end. Each worker process draws from a seed of its own, so the order never depends on speed."""

    def __init__(self, source: Reading, rows: int, window: int, *, pack: bool, seed: int, middle: bool = True) -> None:
        self._source, self._rows, self._window = source, rows, window
        self._pack, self._seed, self._middle = pack, seed, middle

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        random = np.random.default_rng((self._seed, worker.id if worker else 0))
        maker = _Maker(self._source, self._window, self._pack, self._middle, random)
        while True:
            made = [maker.window() for _ in range(self._rows)]
            ids = np.stack([ids for ids, _ in made]).astype(np.int32)
            percent = np.stack([weights[1:] for _, weights in made])
            yield torch.from_numpy(ids), torch.from_numpy(percent)


class _Maker:
    """Fills one window after another."""

    def __init__(self, source: Reading, window: int, pack: bool, middle: bool, random: np.random.Generator) -> None:
        self._source, self._length, self._pack, self._random = source, window + 1, pack, random
        self._odds = source.odds.cumsum()
        self._turns = [_Turns(len(found), random) for found in source.pieces]
        self._cutter = Cutter(source.tokenizer, random) if middle and any(p.middle for p in source.parts) else None
        self._begin, self._end = begin(source.tokenizer), source.tokenizer.eos_ids[0]
        self._marked = bool(source.tokenizer.prefix)

    def window(self) -> tuple[Ids, Weights]:
        """Ids and their weights in percent; what is left over is the end mark, weighing nothing."""
        ids = np.full(self._length, self._end, np.uint16)
        weights = np.zeros(self._length, np.uint8)
        used = 0
        for piece, percent in self._pieces():
            room = self._length - used
            ids[used : used + len(piece)] = piece[:room]
            weights[used : used + len(piece)] = 100 if percent is None else percent[:room]
            used = min(self._length, used + len(piece))
        return ids, weights

    def _pieces(self) -> Iterator[tuple[Ids | Sequence[int], Weights | None]]:
        room = self._length
        piece, percent = self._draw(room)
        bare = not self._marked and self._random.random() < BARE
        if self._pack and not bare and piece[0] != self._begin:
            yield [self._begin], None
            room -= 1
        elif bare and piece[0] == self._begin:
            piece = piece[1:]
        while True:
            yield piece, percent
            room -= len(piece)
            if not self._pack or room < LEAST:
                return
            piece, percent = self._draw(room)

    def _draw(self, room: int) -> tuple[Ids | Sequence[int], Weights | None]:
        which = min(int(np.searchsorted(self._odds, self._random.random())), len(self._turns) - 1)
        ids, percent = self._source.pieces[which][self._turns[which].next()]
        share = self._source.parts[which].middle
        if self._cutter is None or not share:
            return ids, percent
        return self._cutter.rearranged(ids[: room - 8], share), None


class _Turns:
    """Every number below `count` once, in random order, then again in another."""

    def __init__(self, count: int, random: np.random.Generator) -> None:
        self._random, self._count = random, count
        self._order: list[int] = []

    def next(self) -> int:
        """The number whose turn it is."""
        if not self._order:
            self._order = self._random.permutation(self._count).tolist()
        return self._order.pop()
