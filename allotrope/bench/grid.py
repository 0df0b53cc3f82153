"""The grid: which cells are measured, and what a cell's samples come to."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.bench.summary import percentile
from allotrope.errors import UsageError

_MOST_BATCH, _MOST_TOKENS = 4096, 2**24
_CELL = re.compile(r"(\d{1,9}):(\d{1,9}),(\d{1,9})")
_IO = re.compile(r"(\d{1,9}),(\d{1,9})")
USUAL_BATCHES, USUAL_IO = (1, 8), ((64, 20), (128, 120))


@dataclass(frozen=True)
class Cell:
    """So many prompts of so many tokens, each answered with so many."""

    batch: int
    input: int
    output: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.input} in, {self.output} out"

    def why_not(self, max_len: int, max_batch: int) -> str | None:
        """Why an engine with these limits cannot run it, or None."""
        if self.input + self.output > max_len:
            return f"it needs {self.input + self.output} tokens per request; the engine's limit is {max_len}"
        if self.batch > max_batch:
            return f"it needs {self.batch} requests at a time; the engine's limit is {max_batch}"
        return None


def cells(batches: str | None, lengths: Sequence[str] | None, single: Sequence[str] | None) -> tuple[Cell, ...]:
    """The cells of `--batch`, `--io` and `--cell`, each once, in the order in which they are asked for.

    Every length with every batch size; the single ones come after them, and alone if nothing else is asked for.
    """
    found = [_single(text) for text in single or ()]
    if single and batches is None and lengths is None:
        return tuple(dict.fromkeys(found))
    sizes = USUAL_BATCHES if batches is None else tuple(_batches(batches))
    pairs = USUAL_IO if lengths is None else tuple(_pair(text) for text in lengths)
    crossed = [Cell(batch, into, out) for into, out in pairs for batch in sizes]
    return tuple(dict.fromkeys([*crossed, *found]))


def _batches(text: str) -> Iterator[int]:
    for word in text.split(","):
        if not (word.isascii() and word.isdigit()) or not 1 <= int(word[:9]) <= _MOST_BATCH:
            raise UsageError(f"--batch is {text[:60]!r}", remedy=f"give numbers from 1 to {_MOST_BATCH}, as 1,8,64")
        yield int(word)


def _pair(text: str) -> tuple[int, int]:
    found = _IO.fullmatch(text)
    if not found or not all(1 <= int(part) <= _MOST_TOKENS for part in found.groups()):
        raise UsageError(f"--io is {text[:60]!r}", remedy="give tokens in and out, as 64,20, and more after a space")
    return int(found[1]), int(found[2])


def _single(text: str) -> Cell:
    found = _CELL.fullmatch(text)
    if not found or not all(1 <= int(part) <= _MOST_TOKENS for part in found.groups()) or int(found[1]) > _MOST_BATCH:
        raise UsageError(f"--cell is {text[:60]!r}", remedy="give BATCH:IN,OUT, as 8:64,32")
    return Cell(*(int(part) for part in found.groups()))


@dataclass(frozen=True)
class Sample:
    """One turn: seconds to the first token, and to the last of as many; `foreign` is what others had of the CPU.

    `group` names the peers that it was taken in turns with: those that are there, and that memory holds at once.
    """

    ctx_s: float
    total_s: float
    foreign: float
    peak_bytes: int
    read_bytes_per_s: float | None = None  # what memory gave just after, where that was looked at
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ctx_s": self.ctx_s,
            "total_s": self.total_s,
            "foreign": round(self.foreign, 3),
            "peak_bytes": self.peak_bytes,
            "group": self.group,
            **({} if self.read_bytes_per_s is None else {"read_bytes_per_s": round(self.read_bytes_per_s)}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sample:
        """The sample that was kept."""
        read = data.get("read_bytes_per_s")
        return cls(
            float(data["ctx_s"]),
            float(data["total_s"]),
            float(data["foreign"]),
            int(data["peak_bytes"]),
            None if read is None else float(read),
            str(data.get("group", "")),
        )


def figures(cell: Cell, samples: Sequence[Sample]) -> dict[str, Any]:
    """A runner's figures in a cell. Definitions:

    latency   prompts in, all tokens out; its median, percentiles, and spread: (most − least) / median
    t_ctx     until the first token: the same prompts with one token asked for
    t_gen     the rest: latency − t_ctx, turn by turn
    tokens_per_s           batch · output / latency, prefill included
    prefill_tokens_per_s   batch · input / t_ctx
    decode_tokens_per_s    batch · (output − 1) / t_gen; nothing where one token is asked for
    """
    total, ctx = [one.total_s for one in samples], [one.ctx_s for one in samples]
    gen = [max(one.total_s - one.ctx_s, 0.0) for one in samples]
    latency, first, rest = (statistics.median(values) for values in (total, ctx, gen))
    return {
        "latency_ms": latency * 1e3,
        "latency_p95_ms": percentile(total, 0.95) * 1e3,
        "latency_p99_ms": percentile(total, 0.99) * 1e3,
        "spread": (max(total) - min(total)) / latency,
        "t_ctx_ms": first * 1e3,
        "t_gen_ms": rest * 1e3,
        "tokens_per_s": cell.batch * cell.output / latency,
        "prefill_tokens_per_s": cell.batch * cell.input / first,
        "decode_tokens_per_s": cell.batch * (cell.output - 1) / rest if cell.output > 1 and rest > 0 else None,
        "peak_memory_bytes": max(one.peak_bytes for one in samples),
        "foreign": max(one.foreign for one in samples),
        "samples": len(samples),
    }


def read_rate(samples: Sequence[Sample]) -> float | None:
    """What memory gave in turns with the samples: the median; None where nobody looked."""
    rates = [one.read_bytes_per_s for one in samples if one.read_bytes_per_s is not None]
    return statistics.median(rates) if rates else None


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float | None]:
    """How many times as fast ours is, by each rate; None where one has none."""
    return {word: ours[rate] / theirs[rate] if ours[rate] and theirs[rate] else None for word, rate in RATES.items()}


RATES = {"overall": "tokens_per_s", "prefill": "prefill_tokens_per_s", "decode": "decode_tokens_per_s"}


def beside(peers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The best peer by each rate, and how many times as fast ours is; peers that said something else do not count."""
    fair = {name: one for name, one in peers.items() if one.get("reason_absent") is None and not one["different"]}
    found = {}
    for word in RATES:
        ratios = {name: one["ratios"][word] for name, one in fair.items() if one["ratios"][word] is not None}
        best = min(ratios, key=ratios.__getitem__, default=None)
        found[word] = {"peer": best, "ratio": None if best is None else ratios[best]}
    return {"best_peer": found["overall"]["peer"], "ratio_to_best": found["overall"]["ratio"], "best": found}
