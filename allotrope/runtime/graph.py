"""The graph executor: steps are recorded whole and repeated.

What a recorded step reads lies in static memory (`static.py`), so the host sends one small copy, starts the graph and
asks for one small copy back. Rows are padded to one of a few counts, and the page table to one of a few widths
(`padding.py`). A graph is recorded when its sizes are first met, the smallest when the executor is made.

    every row has one token, nothing is adjusted or reported     the graph, sampling included
    … but logits are adjusted or candidates wanted               the graph up to the logits, then call by call
    prompts take part                                            call by call; when the same sizes come again, a graph

Tactics are the same in all three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS
from allotrope.artifact.problems import Load
from allotrope.errors import EngineError, UsageError
from allotrope.hw.capture import Graphs
from allotrope.ops.contract import Scalar
from allotrope.runtime.buffers import Buffers, allocate, fill_poison
from allotrope.runtime.captured import Again, Body, Recorder, Unread
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.padding import Padding, Sizes, buckets
from allotrope.runtime.program import capturable_rows, row_unit, uncapturable
from allotrope.runtime.results import Moments, Results
from allotrope.runtime.static import Layout, Static, split
from allotrope.runtime.step import WANT_ALL, WANT_LAST, Candidates, Pending, StepInput, StepOutput
from allotrope.runtime.step_tensors import promises, step_arrays, to_device

if TYPE_CHECKING:
    import torch

CONTEXT = 128  # tokens that the narrowest page table has room for
MOST_TOKENS = 1024  # of a step with prompts that is recorded: with more, launching costs little beside computing
PATIENCE = 1  # times that the sizes of a step with prompts must have been met before it is recorded
MOST_PROMPTS = 32  # graphs of such steps


@dataclass(frozen=True)
class Recorded:
    """A graph, where it takes its inputs, and where it leaves the logits."""

    replay: Body
    layout: Layout
    logits: torch.Tensor


class GraphExecutor(EagerExecutor):
    """An eager executor that repeats recorded steps where it can.

    The options are those of `EagerExecutor`. With `poison` all memory that a recorded step may not rely on is NaN
    before it runs.
    """

    def __init__(self, *args: Any, pages: int, max_requests: int = 1, poison: bool = False, **options: Any) -> None:
        super().__init__(*args, pages=pages + 1, max_requests=max_requests, poison=poison, **options)
        self._scratch_page, self.pages = pages, pages
        self._scratch_slot = max_requests
        most = capturable_rows(self.plan, max_requests)
        if not most:
            path, tactic = uncapturable(self.plan)
            raise EngineError(
                f"no graph can hold the planned tactic {tactic}",
                where=path,
                remedy="run it with executor eager, or rebuild it here with: allotrope build",
            )
        tokens = capturable_rows(self.plan, min(MOST_TOKENS, self._buffers.capacity[TOKENS]))
        longest, unit = min(-(-self.plan.max_len // self.page_size), pages), row_unit(self.plan)
        self._padding = Padding(
            page_size=self.page_size,
            slot=self._scratch_slot,
            page=pages,
            tokens=tuple(size for size in buckets(tokens, max(unit, 16)) if size > 1),
            rows=buckets(most, unit),
            widths=buckets(longest, max(1, -(-CONTEXT // self.page_size))),
            max_len=self.plan.max_len,
        )
        self._recorder: Recorder = Graphs() if self._device.kind == "cuda" else Again()
        self._recorded: dict[Sizes, Recorded] = {}
        self._met: Counter[Sizes] = Counter()
        self._reserve_static()
        rows, width = self._padding.rows[0], self._padding.widths[0]
        self._graph(Sizes(rows, rows, width, greedy=True, filtered=False, draws=True))

    def _reserve_static(self) -> None:
        """All memory that graphs use, for the most tokens, the most rows and the widest page table: it never moves."""
        import torch

        device, poison, padding = self._device.torch_name, self._poison, self._padding
        rows, width = padding.most_rows, padding.widths[-1]
        tokens = max((rows, *padding.tokens))
        largest = Sizes(tokens, rows, max(width, tokens), greedy=False, filtered=True, draws=True)
        size = Layout.of(padding.arrays(padding.alone(largest))).size
        self._static = Static(self._scratch_slot + 1, size, rows, device, poison)
        self._drawn = self._static.drawn
        capacity = {TOKENS: tokens, LOGITS: rows, SAMPLES: rows}
        self._fixed = Buffers(self.plan, device, poison)
        self._fixed.reserve(capacity)
        load = Load(0, rows, width * self.page_size, self.page_size, self._scratch_page + 1)
        needed = 0 if self.program is None else self.program.workspace(capacity, load)
        self._scratch = allocate("workspaces", (needed,), torch.uint8, device, poison) if needed else None

    def launch(self, step: StepInput) -> Pending:
        """Start a step: recorded, if it is of a kind that comes again and again; otherwise call by call."""
        if self.program is None:
            return super().launch(step)
        import torch

        plain = step.adjust is None and not step.candidates.any() and not (step.targets >= 0).any()
        sizes = self._recordable(step, plain)
        if sizes is None:
            return super().launch(step)
        with torch.inference_mode():
            recorded = self._graph(sizes)
            arrays = self._padding.arrays(self._padding.around(step, sizes), step.sample)
            began = self._clock.now()  # what the host has done till now, a device with no other step waited for
            if len(step.page_copies):
                copies = torch.from_numpy(step.page_copies.T.astype(np.int64))
                self._begin(step, {"s:page_copies": copies.to(self._device.torch_name)})
            self._spoil()
            self._static.send(recorded.layout, arrays)
            recorded.replay()
            if not sizes.draws:
                return self._draw(step, recorded.logits, began)
            return Repeated(step, self._static.bring(sizes.rows), self._clock.ended(began))

    def close(self) -> None:
        """Let go of all memory. The executor is of no use afterwards."""
        self._recorded.clear()
        self._fixed, self._scratch = Buffers(self.plan, self._device.torch_name, poison=False), None
        super().close()

    def _recordable(self, step: StepInput, plain: bool) -> Sizes | None:
        """The sizes to record the step for, or to repeat; None if it is to be computed call by call."""
        if int(step.slots.max()) >= self._scratch_slot:
            raise UsageError(f"slot {step.slots.max()} is used; this executor has {self._scratch_slot}")
        if len(step.tokens) == step.rows:
            last = bool((step.want == WANT_LAST).all())
            return self._padding.sizes(step, plain and bool(step.sample.all())) if last else None
        if not plain or ((step.want == WANT_LAST) != step.sample).any() or (step.want == WANT_ALL).any():
            return None
        sizes = self._padding.sizes(step, True)
        if sizes is None or sizes in self._recorded:
            return sizes
        # Mixtures of prompts and decoding rows seldom come again, and recording one costs what computing it twice does.
        self._met[sizes] += 1
        prompts = sum(not known.decodes for known in self._recorded)
        return sizes if self._met[sizes] > PATIENCE and prompts < MOST_PROMPTS else None

    def _graph(self, sizes: Sizes) -> Recorded:
        """The graph for these sizes, recorded now if it is the first time: over rows of padding, which hurt nobody."""
        if sizes not in self._recorded:
            import torch

            with torch.inference_mode():
                arrays = self._padding.arrays(self._padding.alone(sizes))
                layout = Layout.of(arrays)
                self._spoil()
                self._static.send(layout, arrays)
                counts = {TOKENS: sizes.tokens, LOGITS: sizes.rows, SAMPLES: sizes.rows}
                views = self._fixed.views(counts)
                replay = self._recorder.record(self._body(sizes, layout, views))
                self._recorded[sizes] = Recorded(replay, layout, views[self._logits])
        return self._recorded[sizes]

    def _spoil(self) -> None:
        """For tests: nothing is left of the step before but what the executor keeps."""
        if self._poison:
            self._fixed.views(self._fixed.capacity)
            self._static.spoil()
            if self._scratch is not None:
                fill_poison(self._scratch)

    def _body(self, sizes: Sizes, layout: Layout, views: Mapping[str, Any]) -> Body:
        """The step as a function of nothing: everything that it touches has its place."""
        import torch

        given, left = self._static.views(layout), self._static.results(sizes.rows)
        rows = {TOKENS: sizes.tokens, LOGITS: sizes.rows, SAMPLES: sizes.rows if sizes.draws else 0}
        slots: dict[str, Any] = {f"s:{name}": value for name, value in given.items()} | dict(views) | self._caches
        slots |= {slot: left[name].view(-1, 1) for name, slot in self._sampled.items()}
        joint, drawn, program = self._static.joint(sizes.tokens), self._drawn, self.program
        told: Mapping[str, Scalar] = {"greedy": sizes.greedy, "filtered": sizes.filtered}

        def body() -> None:
            tokens = joint.index_select(0, given["token_from"])
            here = slots | {"s:tokens": tokens, "s:spans": Unread(), "s:memo": {}}
            if program is not None:
                program.run(here, rows, self._scratch, promises={"sample": told})
            kept = {slot: slots[slot] for slot in (self._logits, *self._sampled.values())}
            for slot, place in kept.items():
                if here[slot] is not place:
                    place.copy_(here[slot])
            if sizes.draws:
                drawn.index_copy_(0, given["drawn_slots"], left["tokens"])
                torch.sum(slots[self._logits], -1, dtype=torch.float32, out=left["sums"])

        return body

    def _draw(self, step: StepInput, logits: torch.Tensor, began: Any) -> Results:
        """What comes after the logits, call by call."""
        arrays, counts = step_arrays(step, self.page_size)
        self._reserve(counts)
        slots = to_device(arrays, self._device.torch_name) | self._buffers.views(counts)
        slots[self._logits] = logits[: step.rows]
        if self.program is not None:
            only = {TOKENS: 0, LOGITS: 0, SAMPLES: counts[SAMPLES]}
            self.program.run(slots, only, self._workspace, promises={"sample": promises(step)})
        sampled = {name: slots[slot] for name, slot in self._sampled.items()}
        self._drawn.index_copy_(0, slots["s:drawn_slots"], sampled["tokens"].reshape(-1))
        return Results(step, slots[self._logits], sampled, slots).launched(self._clock.ended(began))


class Repeated:
    """A recorded step that has been launched."""

    def __init__(self, step: StepInput, home: torch.Tensor, moments: Moments) -> None:
        self._sample, self._moments = step.sample, moments
        self._found = split(home, len(home) // 16)

    @property
    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        return self._moments.ready

    def wait(self) -> StepOutput:
        """What the step gave."""
        busy_s, idle_s = self._moments.wait()
        drawn, rows = self._sample, len(self._sample)
        tokens, logprobs, sums = (self._found[name].numpy()[:rows] for name in ("tokens", "logprobs", "sums"))
        finite = ~drawn | (np.isfinite(sums) & ~np.isnan(logprobs))
        likely: tuple[Candidates, ...] = ((),) * rows
        tokens, logprobs = np.where(drawn, tokens, -1), np.where(drawn, logprobs, np.float32(np.nan))
        return StepOutput(tokens.astype(np.int32), logprobs, likely, finite, (), None, busy_s, idle_s)
