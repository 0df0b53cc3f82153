"""Run a plan call by call with nothing but the ops' references: the plainest executor there can be.

It shares no code with the runtime: buffers in a dict, one paged cache per layer with its pages shuffled,
NaN wherever nothing was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from allotrope.artifact.plan import kind, name
from allotrope.models.lower import lower
from allotrope.models.model import Model
from allotrope.ops import registry
from allotrope.ops.attention.spans import Spans

PAGE = 4


class Walk:
    """A model's reference plan and its caches, for `requests` sequences of at most `length` tokens."""

    def __init__(self, model: Model, requests: int = 1, length: int = 256, dtype: torch.dtype = torch.float64) -> None:
        self.plan = lower(model.recipe)
        self.weights = {slot: _tensor(*model.read(slot)).to(dtype) for slot in model.sources}
        pages = -(-length // PAGE)
        order = np.random.default_rng(0).permutation(requests * pages).astype(np.int32)
        self.table = order.reshape(requests, pages)
        width = self.plan.cache.kv_heads * self.plan.cache.head_dim
        self.caches = {
            f"{layer}.{part}": torch.full((requests * pages, PAGE, width), torch.nan, dtype=dtype)
            for layer in range(self.plan.cache.layers)
            for part in "kv"
        }
        self.seen = [0] * requests
        self.prompts = [0] * requests
        self.buffers: dict[str, Any] = {}
        self.hidden: list[torch.Tensor] = []  # the residual stream after each block

    def run(self, tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Give each request its next tokens; the logits of all of them, request by request."""
        step, lengths = self._step(tokens), [len(mine) for mine in tokens]
        self.buffers, self.hidden = {}, []
        blocks = list(self.plan.blocks())
        for path, calls in blocks:
            for call in calls:
                if call.op != "sample":
                    self._call(call, step)
            if path.startswith("blocks."):
                self.hidden.append(self.buffers[self.plan.hidden])
        self.seen = [seen + length for seen, length in zip(self.seen, lengths, strict=True)]
        return list(self.buffers["logits"].split(lengths))

    def _call(self, call: Any, step: dict[str, Any]) -> None:
        places = {"w": self.weights, "b": self.buffers, "s": step, "c": self.caches}
        ins = {operand: places[kind(slot)][name(slot)] for operand, slot in call.ins.items()}
        contract = registry.contract(call.op)
        outs = contract.reference(ins, contract.complete(call.params))
        for operand, slot in call.outs.items():
            places[kind(slot)][name(slot)] = outs[operand]

    def _step(self, tokens: Sequence[Sequence[int]]) -> dict[str, Any]:
        for r, mine in enumerate(tokens):
            self.prompts[r] = self.prompts[r] or len(mine)
        starts = np.cumsum([0, *(len(mine) for mine in tokens)]).astype(np.int32)
        first = np.array(self.seen, np.int32)
        positions = np.concatenate([np.arange(len(mine)) + at for mine, at in zip(tokens, first, strict=True)])
        request = np.repeat(np.arange(len(tokens)), np.diff(starts))
        slots = self.table[request, positions // PAGE] * PAGE + positions % PAGE
        longs = {
            "tokens": np.concatenate([np.asarray(mine) for mine in tokens]),
            "positions": positions,
            "prompt_lens": np.array(self.prompts)[request],
            "kv_slots": slots,
            "logit_rows": np.arange(starts[-1]),
        }
        step: dict[str, Any] = {key: torch.from_numpy(value.astype(np.int64)) for key, value in longs.items()}
        step |= {
            "row_starts": torch.from_numpy(starts),
            "row_first": torch.from_numpy(first),
            "page_table": torch.from_numpy(self.table),
            "spans": Spans(starts, first, self.table),
            "memo": {},
        }
        return step


def _tensor(array: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    whole = torch.from_numpy(np.ascontiguousarray(array))
    return whole.view(torch.bfloat16) if dtype == "bf16" else whole
