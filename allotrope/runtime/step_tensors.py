"""From a step's record to what the plan reads: the tensors behind its `s:` slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS
from allotrope.ops.attention.spans import Spans
from allotrope.ops.contract import Scalar
from allotrope.runtime.step import LAST_DRAWN, WANT_ALL, WANT_LAST, WANT_NONE, Ints, Longs, StepInput

_ALIGN = 64


def step_arrays(step: StepInput, page_size: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Every `s:` slot as a NumPy array (`spans`: the host's record), and how many rows there are of each kind.

    Per token: tokens positions prompt_lens kv_slots. Per request: row_starts row_first page_table. Per row of the
    logits: logit_rows (its token). Per drawn token: sample_rows (its row among the logits), sample_positions (the
    position it will have), drawn_slots. Only where there are any: token_slots beside tokens that are LAST_DRAWN;
    page_copies; score_rows and score_given for what is reported.
    """
    counts = np.diff(step.starts)
    row, positions = _places(step, counts)
    logit_rows = _logit_rows(step)
    drawn = slice(None) if step.sample.all() else step.sample
    arrays: dict[str, Any] = {
        "tokens": step.tokens.astype(np.int64),
        "positions": positions,
        "prompt_lens": step.prompt_lens[row].astype(np.int64),
        "kv_slots": step.pages[row, positions // page_size].astype(np.int64) * page_size + positions % page_size,
        "row_starts": step.starts,
        "row_first": step.first,
        "page_table": step.pages,
        "logit_rows": logit_rows,
        "sample_rows": np.searchsorted(logit_rows, (step.starts[1:] - 1)[drawn]),
        "temperature": step.temperature[drawn],
        "top_k": step.top_k[drawn],
        "top_p": step.top_p[drawn],
        "min_p": step.min_p[drawn],
        "seeds": step.seeds[drawn],
        "sample_positions": (step.first + counts)[drawn].astype(np.int64),
        "drawn_slots": step.slots[drawn].astype(np.int64),
        "spans": Spans(step.starts, step.first, step.pages),
        "memo": {},
        **_adjust_arrays(step),
        **_report_arrays(step, logit_rows),
    }
    if (step.tokens == LAST_DRAWN).any():
        arrays["token_slots"] = step.slots[row].astype(np.int64)
    if len(step.page_copies):
        arrays["page_copies"] = step.page_copies.T.astype(np.int64)
    rows = {TOKENS: len(step.tokens), LOGITS: len(logit_rows), SAMPLES: len(arrays["sample_rows"])}
    return arrays, rows


def _places(step: StepInput, counts: Ints) -> tuple[Longs, Longs]:
    """Each token's row and position."""
    if len(step.tokens) == step.rows:  # everybody decodes
        return np.arange(step.rows), step.first.astype(np.int64)
    row = np.repeat(np.arange(step.rows), counts)
    return row, (step.first - step.starts[:-1])[row] + np.arange(len(step.tokens))


def promises(step: StepInput) -> dict[str, Scalar]:
    """What the `sample` op may be told of the step's rows, so that it can save work."""
    drawn = step.sample
    filtered = (step.top_k > 0) | (step.top_p < 1) | (step.min_p > 0)
    return {"greedy": not (step.temperature[drawn] > 0).any(), "filtered": bool(filtered[drawn].any())}


def logit_starts(step: StepInput) -> Longs:
    """[R + 1] where each row's own rows of the logits begin, and the last one's end."""
    return np.searchsorted(_logit_rows(step), step.starts)


def reported(step: StepInput) -> tuple[Longs, Longs]:
    """Whose likeliest tokens are reported, as rows of the step, and which tokens have a target to score."""
    return np.flatnonzero((step.candidates > 0) & (step.want != WANT_NONE)), np.flatnonzero(step.targets >= 0)


def _logit_rows(step: StepInput) -> Longs:
    """Which tokens have logits: those that are wanted, and those with a target."""
    if (step.want == WANT_LAST).all() and not len(step.targets):
        return step.starts[1:].astype(np.int64) - 1
    wanted = np.zeros(len(step.tokens), np.bool_)
    wanted[step.starts[1:][step.want != WANT_NONE] - 1] = True
    if (step.want == WANT_ALL).any():
        wanted |= np.repeat(step.want == WANT_ALL, np.diff(step.starts))
    if len(step.targets):
        wanted |= step.targets >= 0
    return np.flatnonzero(wanted)


def _report_arrays(step: StepInput, logit_rows: Longs) -> dict[str, Any]:
    """Rows of the logits of which something is reported, and in each a token to score: 0 where none is asked for."""
    likely, scored = reported(step)
    if not len(likely) + len(scored):
        return {}
    tokens = np.concatenate([step.starts[1:][likely] - 1, scored])
    given = np.concatenate([np.zeros(len(likely), np.int64), step.targets[scored].astype(np.int64)])
    return {"score_rows": np.searchsorted(logit_rows, tokens), "score_given": given}


def _adjust_arrays(step: StepInput) -> dict[str, Any]:
    """The adjustments, their rows counted among those that draw."""
    adjust = step.adjust
    if adjust is None:
        longs, floats = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return {"adjust_rows": longs, "adjust_tokens": longs, "adjust_divide": floats, "adjust_add": floats}
    among = np.where(step.sample, np.cumsum(step.sample) - 1, -1)
    return {
        "adjust_rows": among[adjust.rows].astype(np.int64),
        "adjust_tokens": adjust.tokens.astype(np.int64),
        "adjust_divide": adjust.divide,
        "adjust_add": adjust.add,
    }


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
