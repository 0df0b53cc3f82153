"""Driving an engine for verification: teacher-forced walks with a tap, and greedy text with its logits.

A walk is two steps: everything but each sequence's last token as a prefill, then the last tokens as a
decode step, so that the tactics for many rows and those for few both show what they do. Pages are dealt
in a shuffled order, and the pool is poisoned before anything is written to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from allotrope.artifact.plan import Call, Plan
from allotrope.hw.device import Device
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.program import unserved
from allotrope.runtime.step import WANT_ALL, WANT_LAST, StepInput, StepOutput
from allotrope.verify.places import block_of, norm_behind

PAGE_SIZE = 16
Index = torch.Tensor
Others = Mapping[str, torch.Tensor] | None
Visit = Callable[[Call, Mapping[str, torch.Tensor], Index], Others]
"""`visit(call, outs, index)`: `index` gives, for each row of the outputs, its row among all sequences' tokens.

What it gives are inputs with which the call is made again.
"""


@dataclass(frozen=True)
class Chunk:
    """Part of a sequence: tokens `start : stop` of sequence `row`."""

    row: int
    start: int
    stop: int


class Driver:
    """One engine's executor, with room for `sequences` of at most `longest` tokens.

    What is tapped runs call by call. Whatever is not runs as the engine does: natively, where the core computes all.
    """

    def __init__(
        self, engine: Any, device: Device, *, sequences: int, longest: int, tokens: int, plan: Plan | None = None
    ) -> None:
        self._per_row = -(-longest // PAGE_SIZE)
        pages = sequences * self._per_row
        room: dict[str, Any] = {"pages": pages, "page_size": PAGE_SIZE, "max_tokens": tokens}
        room |= {"max_requests": sequences, "plan": plan, "poison": True}
        self._tapped = EagerExecutor(engine, device=device, **room)
        native = device.kind == "cpu" and unserved(plan or engine.manifest.plan) is None
        self._executor = NativeExecutor(engine, device=device, **room) if native else self._tapped
        self._device = device.torch_name
        self.cache_rows = torch.empty(0, dtype=torch.int64)  # of the step that runs, for whoever taps it
        self._order = np.random.default_rng(0).permutation(pages).astype(np.int32).reshape(sequences, self._per_row)

    def walk(self, sequences: Sequence[Sequence[int]], visit: Visit | None = None) -> torch.Tensor:
        """Logits of every token, all sequences one after the other; `visit` sees every call on the way."""
        offsets = np.cumsum([0, *(len(ids) for ids in sequences)])
        prefill = [Chunk(row, 0, len(ids) - 1) for row, ids in enumerate(sequences) if len(ids) > 1]
        decode = [Chunk(row, len(ids) - 1, len(ids)) for row, ids in enumerate(sequences)]
        found: torch.Tensor | None = None
        for chunks in (prefill, decode):
            if not chunks:
                continue
            rows = np.concatenate([np.arange(chunk.start, chunk.stop) + offsets[chunk.row] for chunk in chunks])
            index = torch.from_numpy(rows).to(self._device)
            tap = None if visit is None else _with_index(visit, index)
            logits = torch.as_tensor(self._step(sequences, chunks, want=WANT_ALL, tap=tap).logits)
            if found is None:
                found = torch.empty(int(offsets[-1]), logits.shape[1], dtype=logits.dtype, device=logits.device)
            found[index] = logits
        if found is None:
            raise ValueError("no sequences to walk")
        return found

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        counts: Sequence[int],
        *,
        chunk: int = 48,
        heard: Callable[[int, torch.Tensor], None] = lambda row, logits: None,
    ) -> list[list[int]]:
        """`counts[i]` greedy tokens after each prompt, prefilled in chunks; fewer where the logits are not finite.

        `heard(row, logits)` is given the logits that each token was drawn from, valid until it returns.
        """
        texts: list[list[int]] = [[] for _ in prompts]
        done, wanted = [0] * len(prompts), list(counts)
        lens = [len(prompt) for prompt in prompts]
        while any(len(text) < count for text, count in zip(texts, wanted, strict=True)):
            known = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
            chunks = [
                Chunk(row, done[row], min(len(ids), done[row] + chunk))
                for row, ids in enumerate(known)
                if len(texts[row]) < wanted[row]
            ]
            out = self._step(known, chunks, want=WANT_LAST, prompt_lens=lens)
            for place, part in enumerate(chunks):
                done[part.row] = part.stop
                if not out.finite[place]:
                    wanted[part.row] = 0
                elif part.stop == len(known[part.row]):
                    heard(part.row, torch.as_tensor(out.logits[place]))
                    texts[part.row].append(int(out.tokens[place]))
        return texts

    def _step(
        self,
        sequences: Sequence[Sequence[int]],
        chunks: Sequence[Chunk],
        *,
        want: int,
        prompt_lens: Sequence[int] | None = None,
        tap: Any = None,
    ) -> StepOutput:
        rows = [chunk.row for chunk in chunks]
        count = len(rows)
        self.cache_rows = torch.from_numpy(np.concatenate([self._rows_of(chunk) for chunk in chunks])).to(self._device)
        tokens = np.concatenate([np.asarray(sequences[c.row][c.start : c.stop], np.int32) for c in chunks])
        lens = [len(ids) for ids in sequences] if prompt_lens is None else prompt_lens
        step = StepInput(
            slots=np.asarray(rows, np.int32),
            starts=np.cumsum([0, *(c.stop - c.start for c in chunks)]).astype(np.int32),
            first=np.asarray([c.start for c in chunks], np.int32),
            tokens=tokens,
            pages=self._order[rows],
            want=np.full(count, want, np.uint8),
            sample=np.full(count, want == WANT_LAST),
            prompt_lens=np.asarray([lens[row] for row in rows], np.int32),
            temperature=np.zeros(count, np.float32),
            top_k=np.zeros(count, np.int32),
            top_p=np.ones(count, np.float32),
            min_p=np.zeros(count, np.float32),
            seeds=np.zeros(count, np.int64),
            candidates=np.zeros(count, np.int32),
            page_copies=np.zeros((0, 2), np.int32),
        )
        return self._executor.run(step) if tap is None else self._tapped.run(step, tap)

    def _rows_of(self, chunk: Chunk) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Where in a cache's rows, pages one after the other, a chunk's tokens lie."""
        positions = np.arange(chunk.start, chunk.stop)
        pages = self._order[chunk.row][positions // PAGE_SIZE].astype(np.int64)
        rows: np.ndarray[Any, np.dtype[np.int64]] = pages * PAGE_SIZE + positions % PAGE_SIZE
        return rows


def _with_index(visit: Visit, index: Index) -> Callable[[Call, dict[str, Any]], Others]:
    return lambda call, outs: visit(call, outs, index)


def block_ends(plan: Plan) -> dict[str, tuple[str, str]]:
    """For each block, the embedding too: the path and operand of the call that gives its result.

    That is what a later block reads, wherever it lies: in a plan that adds in place, the stream moves among buffers.
    """
    wrote: dict[str, tuple[str, int, str]] = {}  # by slot: the block, which call, and its operand
    last: dict[str, tuple[int, str]] = {}
    place = {call.path: i for i, call in enumerate(plan.calls)}
    for name, calls in plan.blocks():
        for call in calls:
            for block, at, operand in (wrote[slot] for slot in call.ins.values() if slot in wrote):
                if block != name:
                    last[block] = max(last.get(block, (-1, "")), (at, operand))
            wrote |= {slot: (name, place[call.path], operand) for operand, slot in call.outs.items()}
    return {block: (plan.calls[at].path, _result(plan.calls[at], op, block)) for block, (at, op) in last.items()}


def _result(call: Call, operand: str, block: str) -> str:
    """Of a call that adds and norms: the sum, unless its norm is the block's own."""
    if call.op != "add_norm":
        return operand
    norm = norm_behind(call)
    return "normed" if norm is not None and block_of(norm) == block else "out"
