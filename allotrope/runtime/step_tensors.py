"""From a step's record to what the plan reads: the tensors behind its `s:` slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS
from allotrope.ops.attention.spans import Spans
from allotrope.runtime.step import WANT_ALL, WANT_LAST, StepInput

_ALIGN = 64


def step_arrays(step: StepInput, page_size: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Every `s:` slot as a NumPy array (`spans`: the host's record), and how many rows there are of each kind.

    Per token: tokens positions prompt_lens kv_slots. Per request: row_starts row_first page_table.
    Per drawn token: sample_rows (its row among the logits), sample_positions (the position it will have).
    """
    counts = np.diff(step.starts)
    row = np.repeat(np.arange(step.rows), counts)
    positions = (step.first - step.starts[:-1])[row] + np.arange(len(step.tokens))
    ends = step.starts[1:] - 1
    wanted = (step.want == WANT_ALL)[row]
    wanted[ends] |= step.want == WANT_LAST
    # An index into the logits for each token that has any: how many wanted ones come before it.
    logit_of = np.cumsum(wanted) - 1
    drawn = step.sample
    arrays: dict[str, Any] = {
        "tokens": step.tokens.astype(np.int64),
        "positions": positions.astype(np.int64),
        "prompt_lens": step.prompt_lens[row].astype(np.int64),
        "kv_slots": step.pages[row, positions // page_size].astype(np.int64) * page_size + positions % page_size,
        "row_starts": step.starts,
        "row_first": step.first,
        "page_table": step.pages,
        "logit_rows": np.flatnonzero(wanted),
        "sample_rows": logit_of[ends[drawn]],
        "temperature": step.temperature[drawn],
        "top_k": step.top_k[drawn],
        "top_p": step.top_p[drawn],
        "min_p": step.min_p[drawn],
        "seeds": step.seeds[drawn],
        "sample_positions": (step.first + counts)[drawn].astype(np.int64),
        "spans": Spans(step.starts, step.first, step.pages),
    }
    rows = {TOKENS: len(step.tokens), LOGITS: len(arrays["logit_rows"]), SAMPLES: len(arrays["sample_rows"])}
    return arrays, rows


def logit_ranges(step: StepInput) -> list[tuple[int, int]]:
    """For each row of the step, which of the logits' rows are its own."""
    counts = np.where(step.want == WANT_ALL, np.diff(step.starts), (step.want == WANT_LAST).astype(np.int32))
    ends = np.cumsum(counts)
    return list(zip((ends - counts).tolist(), ends.tolist(), strict=True))


def to_device(arrays: dict[str, Any], device: str) -> dict[str, Any]:
    """The arrays as tensors under their slots' names: wrapped on the CPU, sent in one copy to a GPU."""
    import torch

    host = {name: array for name, array in arrays.items() if not isinstance(array, np.ndarray)}
    plain = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    if device == "cpu":
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in plain.items()}
    else:
        # Pinned memory comes from torch's cache, which reuses a block only when its copy has been done.
        sizes = [-(-array.nbytes // _ALIGN) * _ALIGN for array in plain.values()]
        staged = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        bytes_of, start, starts = staged.numpy(), 0, []
        for array, size in zip(plain.values(), sizes, strict=True):
            bytes_of[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            starts.append(start)
            start += size
        sent = staged.to(device, non_blocking=True)
        tensors = {
            name: sent[at : at + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
            for (name, array), at in zip(plain.items(), starts, strict=True)
        }
    return {f"s:{name}": value for name, value in (tensors | host).items()}
