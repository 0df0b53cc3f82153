"""Sampling with torch: portions of rows at a time; nothing is asked of a device that one would have to wait for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.sample import ADJUSTMENTS
from allotrope.ops.sample.filters import filter_all, filter_each
from allotrope.ops.sample.sums import PORTION, SMALL, Sums, log_mass, padded, rows_at_once, weigh
from allotrope.ops.sample.uniforms import uniforms

_FILTERS = ("top_k", "top_p", "min_p")


def _scratch(problem: Problem, device: Device) -> int:
    """Of a portion: weights, weights by rank, and adjusted logits with one element for what goes nowhere."""
    vocab = problem.axes["vocab"]
    return (16 * padded(vocab) + 4 * vocab + 4) * min(problem.axes["rows"], rows_at_once(device.kind, vocab))


def _refuses(problem: Problem, device: Device) -> str | None:
    if problem.present and problem.present != set(ADJUSTMENTS):
        return f"of the adjustments' operands it is given only {', '.join(sorted(problem.present))}"
    return None if device.kind in PORTION else f"torch runs here on cpu and cuda, not on {device.kind}"


class _Portion:
    """Some of the drawn rows, with their scratch memory."""

    def __init__(self, ins: Mapping[str, Tensor], some: slice, workspace: Tensor) -> None:
        self.raw = ins["logits"].index_select(0, ins["rows"][some])
        self.how = {name: ins[name][some] for name in _FILTERS}
        self.temperature = ins["temperature"][some, None]
        count, vocab = self.raw.shape
        scratch = 8 * count * padded(vocab)
        self.weights, self.ranked = workspace[: 2 * scratch].view(torch.float64).view(2, count, -1)
        self._free = workspace[2 * scratch : 2 * scratch + 4 * (count * vocab + 1)].view(torch.float32)
        adjusted = "adjust_rows" in ins and len(ins["adjust_rows"]) > 0
        self.logits = self._adjusted(ins, some.start) if adjusted else self.raw

    def _adjusted(self, ins: Mapping[str, Tensor], start: int) -> Tensor:
        """The logits after the entries for these rows, in fp32."""
        count, vocab = self.raw.shape
        rows, tokens, divide, add = (ins[name] for name in ADJUSTMENTS)
        rows = rows - start
        mine = (rows >= 0) & (rows < count)
        if self.raw.device.type == "cpu":
            rows, tokens, divide, add = (values[mine] for values in (rows, tokens, divide, add))
            mine = mine[mine]
        # Entries for other rows go to a spare element behind the last row.
        places = torch.where(mine, rows * vocab + tokens, count * vocab)
        self._free[-1:].zero_()
        logits = self._free[:-1].view(count, vocab).copy_(self.raw)
        before, divide = self._free.index_select(0, places).double(), divide.double()
        after = torch.where(before > 0, before / divide, before * divide) + add.double()
        self._free.index_copy_(0, places, after.float())
        return logits

    def sample(self, filtered: bool, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities, both [rows, 1]. Without a uniform all rows are greedy."""
        tokens = self.logits.argmax(-1, keepdim=True)  # the first of equals; NaN counts as largest
        top = self.logits.gather(-1, tokens).double()
        peak = top if self.logits is self.raw else self.raw.amax(-1, keepdim=True).double()
        valid = top - top == 0  # in two kernels, of which `isfinite` takes four
        if peak is not top:
            valid &= peak - peak == 0
        if uniform is not None and not _cold(self.temperature):
            drawn = self._draw(top, uniform, filtered)
            tokens = torch.where((self.temperature > 0) & valid, drawn, tokens)
        tokens = torch.where(valid, tokens, 0)
        chosen = self.raw.gather(-1, tokens).double() - peak
        mass = log_mass(self.raw, peak, self.weights[:, : self.raw.shape[1]])
        return tokens, torch.where(valid, chosen - mass, torch.nan)

    def _draw(self, top: Tensor, uniform: Tensor, filtered: bool) -> Tensor:
        """One token per row, from what the filters leave."""
        vocab = self.logits.shape[1]
        self.weights[:, vocab:] = 0
        weights = torch.sub(self.logits, top, out=self.weights[:, :vocab])  # the maximum is 0
        weigh(weights.div_(torch.where(self.temperature > 0, self.temperature, 1.0)))
        if filtered and self.logits.device.type == "cpu" and vocab > SMALL:
            filter_each(self.logits, weights, self.how)
        elif filtered:
            filter_all(self.logits, weights, self.ranked, self.how)
        sums = Sums(self.weights)
        unit = torch.minimum((uniform * sums.total).floor_(), sums.total - 1)
        # a row of NaN has no such end, and its token is put right by the caller
        return sums.first(unit, above=True).clamp_(max=vocab - 1)


def _cold(temperature: Tensor) -> bool:
    """Whether all rows are known to be greedy. A CPU can look; the tokens are the same either way."""
    return temperature.device.type == "cpu" and not bool((temperature > 0).any())


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    if workspace is None:
        raise ValueError("sampling needs its workspace")
    logits, count = ins["logits"], len(ins["rows"])
    greedy, filtered = params.get("greedy", False) or _cold(ins["temperature"]), bool(params.get("filtered", True))
    uniform = None if greedy else uniforms(ins["seeds"], ins["sample_positions"])
    portion = rows_at_once(logits.device.type, logits.shape[1])
    for start in range(0, count, portion):
        some = slice(start, min(start + portion, count))
        mine = None if uniform is None else uniform[some]
        tokens, logprobs = _Portion(ins, some, workspace).sample(filtered, mine)
        out["tokens"][some], out["logprobs"][some] = tokens, logprobs


TACTICS = (FunctionTactic("sample", "torch_sample", _run, refuses=_refuses, scratch=_scratch, version=3),)
