"""The native executor: a plan handed to the core once, and each step one call into it. No torch.

The core has the step's record as it is; what follows from it (positions, slots in the pages, which rows have logits) it
works out itself. Weights are read where the engine's files are mapped, until they settle (`settling.py`); the KV pool,
the buffers and a workspace are made when the engine is opened.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from allotrope import native
from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Buffer, Call, Plan
from allotrope.artifact.problems import Load
from allotrope.errors import EngineError, OutOfMemory, UsageError
from allotrope.hw.detect import available_memory
from allotrope.hw.device import Device
from allotrope.ops import registry
from allotrope.ops.kv_rows import COMPUTE
from allotrope.ops.native import Described, NativeTactic, aligned, describe, described_cache, operands
from allotrope.ops.sample import ADJUSTMENTS
from allotrope.runtime import unbacked
from allotrope.runtime.call_clock import CoreClock
from allotrope.runtime.joints import Joint, joints
from allotrope.runtime.program import Bound, Choice, Program, unserved
from allotrope.runtime.results import reports
from allotrope.runtime.settling import Settling, is_mapped
from allotrope.runtime.sharing import bytes_of, regions
from allotrope.runtime.step import Pending, StepInput, StepOutput
from allotrope.runtime.weights import Arrays, Engine
from allotrope.units import shortage

_KINDS = {TOKENS: 0, LOGITS: 1, SAMPLES: 2}
_DTYPES = {"compute": 1, "fp32": 1, "int64": 6}
_ABSENT = 0  # the core's first slot
_WIDE, _MOST_LOOKED_UP = 2**25, 256  # bytes of tables, and tokens, from which on it is worth it to let go of them
_WORD = 4  # bytes by which rows of fp32, and scales, are found
_READ_S, _MOST_GOES = 0.03, 200  # how long reading is looked at


class _Done:
    """A step that has been computed: on a CPU it is, when `launch` returns."""

    ready = True

    def __init__(self, output: StepOutput) -> None:
        self._output = output

    def wait(self) -> StepOutput:
        """Its output."""
        return self._output


class NativeExecutor:
    """Runs steps of an engine whose plan calls nothing but the core's kernels.

    `poison` fills memory with NaN before it is used, for tests; `timed` notes how long each call of a step takes;
    `plain` computes every call by itself, which gives the same bits (`joints.py`).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        device: Device,
        pages: int,
        page_size: int,
        max_tokens: int,
        max_requests: int = 1,
        plan: Plan | None = None,
        threads: int | None = None,
        poison: bool = False,
        timed: bool = False,
        plain: bool = False,
    ) -> None:
        self.plan = plan or engine.manifest.plan
        self.page_size, self.pages = page_size, pages
        self._poison = poison
        if (other := unserved(self.plan)) is not None:
            raise EngineError(
                f"its tactic {other[1]} is not the native core's", where=other[0], remedy="run it eagerly"
            )
        self._program = Program(self.plan, Arrays(engine), device, threads)
        self._caches = _make_caches(self.plan, pages, page_size, poison)
        self._held: list[Any] = []  # weights whose memory nothing else keeps
        self._multiplied: dict[int, npt.NDArray[Any]] = {}  # the weights that every step reads, by slot
        self._capacity = {TOKENS: max_tokens, LOGITS: max_requests, SAMPLES: max_requests}
        self._workspace(self._capacity)  # a tactic that cannot run here is fatal before the core is told of it
        self._preludes: dict[tuple[str, tuple[float, ...]], tuple[NativeTactic, Mapping[str, Any]]] = {}
        self._core: Any = self._handed_over(engine, plain)
        self._settling = Settling(native.find().core, self._core, self._multiplied, self._program.threads)
        self._stepped_s = 0.0
        self._engine: Engine | None = engine
        self._looked_up = 0  # tokens since the mapped files were let go of
        read = {describe(array) for array in self._multiplied.values()}
        tables = (array for array in self._held if describe(array) not in read and is_mapped(array))
        self._wide_tables = sum(array.nbytes for array in tables) > _WIDE
        self._clock = CoreClock(self._core, self.plan) if timed else None
        self._reserve(self._capacity)
        self._ended: float | None = None
        self.can_repeat = not (timed or poison)  # each step is to be seen, or filled, by itself

    def launch(self, step: StepInput) -> Pending:
        """Compute a step."""
        return _Done(self.run(step))

    def run(self, step: StepInput) -> StepOutput:
        """Compute a step."""
        core = self._core
        if core is None:
            raise UsageError("the engine has been closed", remedy="open it again")
        if self._settling.left:
            self._settling.go_on(self._stepped_s)
        began, rows, repeats = time.perf_counter(), len(step.slots), step.repeats
        shape = rows if repeats == 1 else (repeats, rows)
        tokens, logprobs, finite = np.empty(shape, np.int32), np.empty(shape, np.float32), np.empty(shape, np.bool_)
        if self._poison:
            core.poison()
            self._logits.fill(np.nan)
        while (count := core.launch(step, tokens, logprobs, finite)) < 0:
            needed = dict(zip(_KINDS, core.needed(), strict=True))
            self._reserve({kind: max(count, self._capacity[kind]) for kind, count in needed.items()})
        candidates, scored = self._reports(step, finite) if core.reported()[0] else (((),) * rows, ())
        if repeats > 1:
            done = core.repeated()
            tokens, logprobs, finite = tokens[:done], logprobs[:done], finite[:done]
        ended = time.perf_counter()
        self._stepped_s += ended - began
        if self._wide_tables:
            self._let_go(len(step.tokens))
        idle, self._ended = 0.0 if self._ended is None else began - self._ended, ended
        timed = None if self._clock is None else self._clock.stepped()
        logits = self._logits[:count]
        return StepOutput(tokens, logprobs, candidates, finite, scored, logits, ended - began, idle, timed)

    def read_rate(self) -> float:
        """Bytes a second at which our threads, doing nothing else, read the weights that every step reads: its limit,
        now and here. The faster of two goes counts, or of more where they are short."""
        if self._core is None:
            raise UsageError("the engine has been closed", remedy="open it again")
        core, threads = native.find().core, self._program.threads
        places = list(self._settling.places.values())
        goes: list[float] = [core.read_all(places, threads) for _ in range(2)]
        while sum(goes) < _READ_S and len(goes) < _MOST_GOES:
            goes.append(core.read_all(places, threads))
        return sum(size for _, size in places) / min(goes)

    def close(self) -> None:
        """Let go of all memory. The executor is of no use afterwards."""
        if self._clock is not None:
            self._clock.close()
        self._core, self._caches, self._clock, self._engine = None, {}, None, None
        self._settling.close()

    def _let_go(self, tokens: int) -> None:
        """Whoever looks a row up has what lies around it mapped, too, until all of a table counts as resident."""
        self._looked_up += tokens
        if self._looked_up < _MOST_LOOKED_UP or self._engine is None or not self._settling.settled:
            return
        self._engine.forget()
        self._looked_up = 0

    def _reports(self, step: StepInput, finite: npt.NDArray[np.bool_]) -> tuple[Any, Any]:
        rows, most = self._core.reported()
        given, likeliest, values = self._core.reports()
        found = {
            "given": np.array(given, np.float32),
            "likeliest": np.array(likeliest, np.int64).reshape(rows, most),
            "values": np.array(values, np.float32).reshape(rows, most),
        }
        return reports(step, found, finite)

    @property
    def _longest(self) -> int:
        """Tokens of a context: the pool bounds them, too."""
        return min(self.plan.max_len, self.pages * self.page_size)

    def _workspace(self, rows: Mapping[str, int]) -> int:
        """Bytes for steps of this size."""
        load = Load(0, max(rows[SAMPLES], 1), self._longest, self.page_size, self.pages)
        return self._program.workspace(rows, load)

    def _reserve(self, rows: Mapping[str, int]) -> None:
        """Make room for steps of this size; where that fails, there is as much as before."""
        workspace = self._workspace(rows)
        shared = [
            aligned(tactic.prelude.room(rows[TOKENS], params))
            for tactic, params in self._preludes.values()
            if tactic.prelude is not None
        ]
        try:
            logits = np.empty((rows[LOGITS], self.plan.vocab), np.float32)
            self._core.reserve([rows[kind] for kind in _KINDS], workspace, shared, describe(logits)[0])
        except MemoryError as error:
            needed = bytes_of(self.plan, rows, self._regions) + workspace
            raise OutOfMemory(
                f"activation buffers need {shortage(needed, available_memory())}",
                remedy="lower max_num_seqs, max_batched_tokens or kv_memory",
            ) from error
        self._logits, self._capacity = logits, dict(rows)

    def _handed_over(self, engine: Engine, plain: bool) -> Any:
        """The plan as a program of the core."""
        found = native.find()
        wanted = self._program.threads
        threads = found.core.team_of(wanted)
        if threads < wanted:
            warnings.warn(f"the system gives {threads} threads where {wanted} were wanted: slower steps", stacklevel=4)
        core = found.core.Program(found.isa, threads, self.page_size, self._longest)
        slots: dict[str, int] = {name: core.cache(*described_cache(cache)) for name, cache in self._caches.items()}
        together = {} if plain else joints(self.plan, lambda call: _is(found.core.is_linear, found.isa, call))
        if plain:
            core.plainly()
        self._regions = regions(self.plan, together, lambda call: _is(found.core.is_by_rows, found.isa, call))
        whole = {name: spec for name, spec in self.plan.buffers.items() if spec.of is None}
        for name, spec in [*whole.items(), *((n, s) for n, s in self.plan.buffers.items() if s.of is not None)]:
            slots[f"b:{name}"] = _buffer(core, spec, slots, self._regions.get(name, -1))
        weights: dict[Described, int] = {}
        for bound in self._program.calls:
            core.call(_KINDS[bound.rows])
            for choice in bound.choices:
                self._choice(core, bound, choice, slots, weights)
            if (joint := together.get(bound.call.path)) is not None:
                core.behind(*_behind(joint, slots))
        sample = next(bound for bound in self._program.calls if bound.call.op == "sample")
        if not set(ADJUSTMENTS) <= set(sample.call.ins):
            remedy = "rebuild the engine here with: allotrope build"
            raise EngineError("the plan draws tokens without adjustments", where=sample.call.path, remedy=remedy)
        if (fetch := engine.manifest.tuned.get("fetch")) is not None:
            core.fetch(fetch == "near")
        core.logits(slots[sample.call.ins["logits"]])
        core.sampled(slots[sample.call.outs["tokens"]], slots[sample.call.outs["logprobs"]])
        return core

    def _choice(
        self, core: Any, bound: Bound, choice: Choice, slots: dict[str, int], weights: dict[Described, int]
    ) -> None:
        tactic, given = choice.tactic, dict(bound.ins)
        if not isinstance(tactic, NativeTactic):
            raise TypeError(f"{tactic.name} of {bound.call.path} is no kernel of the core")

        def slot(operand: str) -> int:
            if operand in choice.weights:
                array = choice.weights[operand]
                view = describe(array)
                if view not in weights:  # an embedding that the head reads, too, is one weight and settles as one
                    self._held.append(array)  # one that was laid down anew is nobody else's
                    weights[view] = core.fixed(view)
                if bound.call.op.startswith("linear"):
                    self._multiplied[weights[view]] = array
                return weights[view]
            name = given.get(operand)
            if name is None:
                return _ABSENT
            if name not in slots and plans.kind(name) == "s":
                slots[name] = core.step(plans.name(name))
            return slots[name]

        ins, outs = operands(tactic.op)
        numbers = [float(number) for number in tactic.numbers(bound.params)]
        prelude, key = "", tuple[float, ...]()
        if tactic.prelude is not None:
            prelude, key = tactic.prelude.kernel, tuple(float(number) for number in tactic.prelude.key(bound.params))
            self._preludes.setdefault((prelude, key), (tactic, bound.params))
        made = [slots[bound.call.outs[name]] for name in outs]
        core.choice(choice.bound or 0, tactic.kernel, numbers, [slot(name) for name in ins], made, prelude, list(key))


def _is(kind: Any, isa: str | None, call: Call) -> bool:
    """Whether all kernels of a call are of that kind."""
    kernels = [registry.tactic(call.op, name) for _, name in call.tactics]
    return all(isinstance(tactic, NativeTactic) and kind(isa, tactic.kernel) for tactic in kernels)


def _behind(joint: Joint, slots: Mapping[str, int]) -> tuple[int, int, int, bool]:
    residual = _ABSENT if joint.residual is None else slots[joint.residual]
    return slots[joint.out], residual, joint.curve, joint.gated


def _buffer(core: Any, spec: Buffer, slots: Mapping[str, int], region: int) -> int:
    if spec.of is not None:
        return int(core.part(slots[f"b:{spec.of}"], spec.start, spec.width))
    return int(core.buffer(_KINDS[spec.rows], spec.width, _DTYPES[spec.dtype], region))


def _make_caches(plan: Plan, pages: int, page_size: int, poison: bool) -> dict[str, npt.NDArray[Any]]:
    """The KV pool, by `c:` slot, [pages, page_size, row_width] each.

    It lies page by page, all layers' keys and values of a page together: pages that nobody has used are taken in order,
    so what has been used is the pool's beginning.
    """
    places: list[tuple[str, int, np.dtype[Any], int]] = []  # slot, offset in the page, dtype, width
    apart = 0
    for layer, form in enumerate(plan.cache.dtypes):
        dtype, width = np.dtype(np.float32 if form == COMPUTE else np.uint8), plan.cache.row_width(form)
        for part in "kv":
            places.append((f"c:{layer}.{part}", apart, dtype, width))
            apart += -(-page_size * width * dtype.itemsize // _WORD) * _WORD
    try:
        pool = unbacked.empty(pages * apart)
    except MemoryError as error:
        raise OutOfMemory(
            f"the KV pool's pages need {shortage(pages * apart, available_memory())}",
            remedy="lower max_num_seqs, max_batched_tokens or kv_memory",
        ) from error
    if poison:
        pool.fill(0xFF)  # NaN
    return {
        slot: np.ndarray(
            (pages, page_size, width), dtype, pool.data, offset, (apart, width * dtype.itemsize, dtype.itemsize)
        )
        for slot, offset, dtype, width in places
    }
