"""What variants say beside the original: distributions over the same text, teacher-forced, all against one truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from allotrope import tokenizers
from allotrope.artifact import digests
from allotrope.artifact.engine import Engine, open_engine
from allotrope.build.calibration import text_of
from allotrope.errors import TokenizerError, UsageError
from allotrope.eval import paired
from allotrope.hw.device import Device
from allotrope.models.model import Model, open_model
from allotrope.ops import check
from allotrope.verify.distributions import compare_logits, kl_by_position
from allotrope.verify.drive import Driver
from allotrope.verify.effective import Effective, Stored
from allotrope.verify.oracle import LOGITS, as_written
from allotrope.verify.original import FINER, oracle
from allotrope.verify.records import Logits
from allotrope.verify.verdict import cost_word

_SEQUENCES, _LENGTH = 8, 96
_BLOCK = 16  # neighbouring positions that count as one value: they depend on each other


@dataclass(frozen=True)
class Quality:
    """How far one engine is from the original. `word` is the verdict's by these distributions alone; verify asks more.

    `expected` is how far the original goes with the engine's own weights, and keys and values rounded as the textbook
    has it; `leaks`, whether the engine goes further by more than chance and by a factor. None and False where all
    keys and values are wide.
    """

    word: str
    figures: Logits
    blocks: tuple[float, ...]  # the KL's mean over each few neighbouring positions
    expected: float | None = None
    leaks: bool = False

    def to_json(self) -> dict[str, Any]:
        """The keys of a row."""
        found = self.figures
        return {
            "kl": found.mean_kl,
            "kl_max": found.max_kl,
            "same_top1": found.same_top1,
            "perplexity_ratio": found.perplexity_ratio,
            "verdict": self.word,
            "kl_expected": self.expected,
            "leaks": self.leaks,
        }


class Original:
    """The original's distributions over some text, in the truth's precision, and how far its own dtype is from that."""

    def __init__(
        self, ref: str, device: Device, dtype: str, *, text: str | None, seed: int, allow_pickle: bool
    ) -> None:
        self._device, self._dtype, self._seed = device, dtype, seed
        self._model = model = open_model(ref, allow_pickle=allow_pickle)
        self.sequences, self.source = _sequences(model, text, seed)
        finer = oracle(model, FINER[dtype], device)
        self._truth = finer.walk(self.sequences, {})[LOGITS]
        self._same = oracle(model, dtype, device, finer=finer).walk(self.sequences, {})[LOGITS]
        self._floor = check.compare(self._same, self._truth)

    @property
    def positions(self) -> int:
        """How many distributions are compared."""
        return len(self._truth)

    @property
    def key(self) -> str:
        """The same for the same tokens in the same precision."""
        return digests.of_bytes(repr((self._dtype, self.sequences)).encode())[:24]

    def judge(self, folder: Path) -> Quality:
        """One engine beside the original."""
        engine = open_engine(folder, device=self._device)
        longest = max(map(len, self.sequences))
        rows, tokens = len(self.sequences), self.positions
        driver = Driver(engine, self._device, sequences=rows, longest=longest, tokens=tokens)
        logits = driver.walk(self.sequences)
        figures = compare_logits(logits, self._truth, self._same, self.sequences)
        within = check.within(check.compare(logits, self._truth), self._floor, self._dtype) is None
        blocks = self._blocks(logits)
        found = Quality(cost_word(figures, within), figures, blocks)
        if not engine.manifest.plan.cache.narrow:
            return found
        due = self._blocks(self._textbook(engine))
        more = paired.compare(blocks, due, seed=self._seed)
        due_kl = math.fsum(due) / len(due)
        return replace(found, expected=due_kl, leaks=more.interval[0] > 0 and more.difference > due_kl)

    def _blocks(self, logits: torch.Tensor) -> tuple[float, ...]:
        """The KL's mean over a few neighbouring positions each."""
        lengths = [len(ids) for ids in self.sequences]
        parts = torch.split(kl_by_position(logits, self._truth), lengths)
        return tuple(float(few.mean()) for part in parts for few in torch.split(part, _BLOCK))

    def _textbook(self, engine: Engine) -> torch.Tensor:
        """The original with the engine's own weights, and keys and values that this file rounds itself."""
        precision, narrow = FINER[self._dtype], engine.manifest.plan.cache.narrow
        weights = Effective(Stored(engine), self._model).loaders(precision)
        meant = oracle(self._model, precision, self._device, weights=weights)
        meant.round_kv = lambda layer, states: _rounded(states, narrow[layer]) if layer in narrow else states
        return meant.walk(self.sequences, {})[LOGITS]


def _rounded(states: torch.Tensor, form: str) -> torch.Tensor:
    """Keys or values [batch, heads, length, head_dim] with a scale per token and head, and back."""
    with as_written():
        wide = states.float()
        peak = wide.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        if form == "int8":
            back = (wide / (peak / 127)).round() * (peak / 127)
        else:
            back = (wide / (peak / 448)).to(torch.float8_e4m3fn).float() * (peak / 448)
        return back.to(states.dtype)


def cost(quality: Quality, without: Quality, seed: int) -> tuple[float, paired.Interval]:
    """How much further from the original one is than another, in nats, and the interval of that."""
    found = paired.compare(quality.blocks, without.blocks, seed=seed)
    return found.difference, found.interval


def _sequences(model: Model, text: str | None, seed: int) -> tuple[list[tuple[int, ...]], str]:
    """Eight pieces of a text that no calibration has seen, or random tokens where there is no tokenizer."""
    trained = model.family.oracle.max_len(model.config)
    length = min(_LENGTH, model.recipe.max_len, trained or _LENGTH)
    if model.tokenizer_dir is None:
        if text is not None:
            remedy = "leave --text out"
            raise UsageError("a random model reads no text; it is judged on random tokens", where=text, remedy=remedy)
        drawn = torch.randint(model.recipe.vocab, (_SEQUENCES, length), generator=torch.Generator().manual_seed(seed))
        return [tuple(row) for row in drawn.tolist()], "random tokens"
    written = text_of(text) if text else resources.files("allotrope.ablate").joinpath("text.txt").read_text("utf-8")
    try:
        tokenizer = tokenizers.load(model.tokenizer_dir, model.recipe.vocab)
    except TokenizerError as error:
        if error.problem != "no tokenizer":
            raise
        drawn = torch.randint(model.recipe.vocab, (_SEQUENCES, length), generator=torch.Generator().manual_seed(seed))
        return [tuple(row) for row in drawn.tolist()], "random tokens"
    ids = [
        token for token in tokenizer.encode(written, special=False, allow_special=False) if token < model.recipe.vocab
    ]
    begin = [tokenizer.bos_id] if tokenizer.bos_id is not None else list(tokenizer.eos_ids[:1])
    step = length - len(begin)
    pieces = [(*begin, *ids[start : start + step]) for start in range(0, len(ids), step)]
    pieces = [piece for piece in pieces if len(piece) > 1 + len(begin)][:_SEQUENCES]
    if not pieces:
        raise UsageError("the text has no tokens", where=text or "--text", remedy="give a file with text")
    return pieces, text or "bundled text"
