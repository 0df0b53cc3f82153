"""Writes whole programs for `programs.cpp` to make again: `python native/test/programs.py FILE`.

Small models, wide and in codes, with wide and narrow keys and values, answer a ragged crowd of requests on one, two
and three threads. What the core was told, step by step, and what it gave, goes into the file.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from allotrope import native
from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.build import build
from allotrope.runtime.step import LAST_DRAWN, Adjustments, StepInput
from tests.engines import GPT, LLAMA, plan_of, random_weights, write
from tests.narrow_kit import QUICK, checkpoint
from tests.native_kit import natively

TEAMS = (1, 2, 3)
VOCAB = 263  # the byte tokenizer needs 259
_SIZES = {1: 4, 2: 2, 3: 2, 4: 8, 5: 4, 6: 8, 7: 1, 8: 1}  # bytes of an element, by the core's number of its dtype
_FIELDS = (
    "slots", "starts", "first", "tokens", "pages", "want", "sample", "prompt_lens", "temperature", "top_k", "top_p",
    "min_p", "seeds", "candidates", "page_copies", "targets", "target_candidates",
)  # fmt: skip
_NOTHING = Adjustments(*(np.zeros(0, kind) for kind in (np.int32, np.int32, np.float32, np.float32)))


class Recorder:
    """Stands for the extension, whose programs it records."""

    def __init__(self, core: Any, file: BinaryIO) -> None:
        self._core, self._file = core, file
        self._last: Recorded | None = None
        self.vocab = self.programs = self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def Program(self, isa: str, threads: int, page_size: int, longest: int) -> Recorded:  # noqa: N802 (the core's name)
        """A new one."""
        self.programs += 1
        self.end()
        self._file.write(struct.pack("<qqq", threads, page_size, longest))
        self._last = Recorded(self, self._core.Program(isa, threads, page_size, longest), self._file)
        return self._last

    def workspace(self, _: str, kernel: str, sizes: Any, threads: int) -> int:
        """What every instruction set can do with: each makes the program again."""
        return max(int(self._core.workspace(isa, kernel, sizes, threads)) for isa, _ in self._core.isas("portable"))

    def end(self) -> None:
        """The last program takes no more steps."""
        if self._last is not None:
            self._last.end()
            self._last = None


class Recorded:
    """Stands for a program: writes down what it is told, and does it."""

    def __init__(self, recorder: Recorder, program: Any, file: BinaryIO) -> None:
        self._recorder, self._program, self._file = recorder, program, file
        self._logits = 0
        self._drawn: dict[int, int] = {}  # by slot

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def fixed(self, view: Any) -> Any:
        self._block("fixed", view)
        return self._program.fixed(view)

    def cache(self, view: Any, apart: int) -> Any:
        address, rows, _, stride, _, page = view
        self._words("cache")
        self._file.write(struct.pack("<IqqqIi", 0, *view[1:]))
        self._bytes(b"".join(ctypes.string_at(address + i * apart, page * stride) for i in range(rows // page)))
        return self._program.cache(view, apart)

    def buffer(self, rows: int, width: int, dtype: int, region: int) -> Any:
        return self._whole("buffer", rows, width, dtype, region)

    def part(self, of: int, start: int, width: int) -> Any:
        return self._whole("part", of, start, width)

    def call(self, rows: int) -> Any:
        return self._whole("call", rows)

    def behind(self, out: int, residual: int, curve: int, gated: bool) -> Any:
        return self._whole("behind", out, residual, curve, gated)

    def logits(self, slot: int) -> Any:
        return self._whole("logits", slot)

    def sampled(self, tokens: int, logprobs: int) -> Any:
        return self._whole("sampled", tokens, logprobs)

    def step(self, name: str) -> Any:
        self._words("step", name)
        return self._program.step(name)

    def choice(self, bound: int, kernel: str, numbers: Any, ins: Any, outs: Any, prelude: str, key: Any) -> None:
        self._words("choice", kernel, prelude)
        for reals in (numbers, key):
            self._numbers("d", reals)
        for whole in ([bound], ins, outs):
            self._numbers("q", whole)
        self._program.choice(bound, kernel, numbers, ins, outs, prelude, key)

    def reserve(self, rows: Any, workspace: int, preludes: Any, logits: int) -> None:
        room = 4 * rows[1] * self._recorder.vocab
        self._words("reserve")
        self._numbers("q", [*rows, workspace, room, *preludes])
        self._logits = logits
        self._program.reserve(rows, workspace, preludes, logits)

    def launch(self, step: StepInput, tokens: Any, logprobs: Any, finite: Any) -> int:
        told, step = step.tokens, self._forgotten(step)
        count = int(self._program.launch(step, tokens, logprobs, finite))
        self._words("launch")
        self._recorder.steps += 1
        adjust = step.adjust or _NOTHING
        arrays = [getattr(step, name) for name in _FIELDS]
        for array in (*arrays, adjust.rows, adjust.tokens, adjust.divide, adjust.add, told):
            self._bytes(array.tobytes())
        self._file.write(struct.pack("<q", count))
        if count < 0:
            return count
        for array in (tokens, logprobs, finite):
            self._file.write(array.tobytes())
        self._bytes(ctypes.string_at(self._logits, 4 * count * self._recorder.vocab))
        self._file.write(struct.pack("<qq", *self._program.reported()))
        for kind, values in zip("fqf", self._program.reports(), strict=True):
            self._numbers(kind, values)
        self._drawn |= {int(slot): int(token) for slot, token in zip(step.slots, tokens, strict=True) if token >= 0}
        return count

    def end(self) -> None:
        """No more of this one."""
        self._words("end")

    def _forgotten(self, step: StepInput) -> StepInput:
        """The same step; a token that its slot has just drawn is left to the core, as it is with steps in flight."""
        tokens = step.tokens.copy()
        for slot, start, end in zip(step.slots, step.starts[:-1], step.starts[1:], strict=True):
            if end - start == 1 and tokens[start] == self._drawn.get(int(slot)):
                tokens[start] = LAST_DRAWN
        return replace(step, tokens=tokens)

    def _whole(self, name: str, *numbers: int) -> Any:
        self._words(name)
        self._numbers("q", numbers)
        return getattr(self._program, name)(*numbers)

    def _block(self, name: str, view: tuple[int, ...]) -> None:
        address, rows, width, stride, dtype, _ = view
        self._words(name)
        self._file.write(struct.pack("<IqqqIi", 0, *view[1:]))
        self._bytes(ctypes.string_at(address, (rows - 1) * stride + width * _SIZES[dtype]))

    def _bytes(self, held: bytes) -> None:
        self._file.write(struct.pack("<q", len(held)) + held)

    def _words(self, *words: str) -> None:
        for word in words:
            self._file.write(struct.pack("<I", len(word)) + word.encode("ascii"))

    def _numbers(self, kind: str, numbers: Any) -> None:
        self._file.write(struct.pack(f"<I{len(numbers)}{kind}", len(numbers), *numbers))


def engines(folder: Path) -> Iterator[Path]:
    """Wide and narrow weights, activations, keys and values; both families of blocks."""
    for name, recipe in (("llama", LLAMA), ("gpt", GPT)):
        yield write(folder / name, natively(plan_of(recipe)), random_weights(recipe))
    for kind, options in (
        ("llama", {"weights": "int8", "activations": "int8", "kv": "int8", "method": "nearest"}),
        ("gpt2", {"weights": "int4", "method": "nearest", "kv": "int8"}),
        ("qwen2", {"weights": "int4", "activations": "int8", "method": "nearest"}),
    ):
        source = checkpoint(kind, folder / f"{kind}-wide")
        (source / "bytes.json").write_text(f'{{"vocab_size": {VOCAB}}}', encoding="ascii")
        yield build(str(source), folder / f"{kind}-narrow", executor="native", **QUICK, **options).path


def ask(llm: LLM) -> None:
    """Prompts of many lengths, greedy and drawn, filtered, penalised, scored, in beams; more than fit at a time."""
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 250, size).tolist() for size in (1, 29, 5, 17, 2, 9)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 2},
        {"temperature": 1.2, "top_k": 40, "seed": 3},
        {"temperature": 0.8, "top_p": 0.9, "min_p": 0.01, "seed": 4, "prompt_logprobs": 2},
        {"temperature": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
        {"temperature": 1, "n": 3, "seed": 5},
        {"temperature": 0, "beams": 3},
    ]
    llm.generate(prompts, [SamplingParams(max_tokens=7, ignore_eos=True, **kind) for kind in kinds])


def main() -> None:
    """Write the file."""
    found = native.find()
    with Path(sys.argv[1]).open("wb") as file, tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(found.core, file)
        file.write(struct.pack("<I", len(found.isa)) + found.isa.encode("ascii"))
        made = list(engines(Path(folder)))
        recorded = replace(found, core=recorder)
        native.find = lambda: recorded  # type: ignore[assignment]
        for path in made:
            recorder.vocab = open_engine(path).manifest.plan.vocab
            for threads in TEAMS:
                with LLM(path, threads=threads, max_num_seqs=5, max_batched_tokens=24, page_size=4) as llm:
                    ask(llm)
        recorder.end()
    sys.stdout.write(f"{recorder.programs} programs, {recorder.steps} steps\n")


if __name__ == "__main__":
    main()
