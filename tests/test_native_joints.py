"""What the core computes together, or each thread for itself, has the bits of every call computed by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from allotrope import native
from allotrope.artifact.engine import Engine, open_engine
from allotrope.artifact.plan import Plan
from allotrope.build import build
from allotrope.build.fuse import by_name
from allotrope.models.recipe import Recipe
from allotrope.runtime.joints import joints
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.request import new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.sharing import regions
from allotrope.runtime.step import WANT_ALL
from tests.engines import GPT, LLAMA, VOCAB, MemoryEngine, plan_of, random_weights
from tests.narrow_kit import QUICK, checkpoint
from tests.native_kit import native_engine, native_executor, natively, needs_core
from tests.test_eager import LIMITS, bits, one_step, prompts, serve

pytestmark = needs_core
ISAS = [name for name, lacks in native.find().lacking.items() if not lacks]
# Without these fusions sums and activations stand by themselves.
APART = ("add_norm", "residual", "activated")
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, wide": ("llama", {"without": APART}),
    "llama, 8 bits": (
        "llama",
        {"weights": "int8", "activations": "int8", "keep": ("head=int8",), "method": "nearest", "without": ("smooth",)},
    ),
    "qwen2, 4 bits by 32": (
        "qwen2",
        {"weights": "int4", "activations": "int8", "method": "nearest", "without": ("smooth", *APART)},
    ),
    "gpt2, 16 bits": ("gpt2", {"weights": "fp16", "keep": ("head=fp16",)}),
    "gpt2, 4 bits with zeros": (
        "gpt2",
        {"weights": "int4", "asymmetric": True, "method": "nearest", "kv": "int8", "without": APART},
    ),
    "opt, wide": ("opt", {"without": APART}),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """One of each kind."""
    made, folder = {}, tmp_path_factory.mktemp("joints")
    for i, (name, (kind, options)) in enumerate(ENGINES.items()):
        source = checkpoint(kind, folder / f"{i}-wide", vocab_size=VOCAB)
        built = build(str(source), folder / f"{i}", executor="native", **QUICK, **options)
        made[name] = open_engine(built.path)
    return made


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One after the other all instruction sets that can run here."""
    found = replace(native.find(), isa=request.param)
    monkeypatch.setattr(native, "find", lambda: found)
    return str(request.param)


def together(plan: Plan) -> dict[str, str]:
    """Which calls stand behind which, by the last parts of their paths."""
    found = joints(
        plan, lambda call: call.op.startswith("linear") and call.op not in ("linear_add", "linear_activation")
    )
    blocks = {(path.split(".")[1], joint.call.path.split(".")[1]) for path, joint in found.items()}
    assert all(one == other for one, other in blocks)
    return {path.split(".", 2)[2]: joint.call.path.rpartition(".")[2] for path, joint in found.items()}


def crowd(runner: Any, count: int, seqs: int, budget: int) -> list[Any]:
    """Greedy and drawn, filtered and penalised, with likeliest tokens and scored prompts."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 1.2, "top_k": 40},
        {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02, "prompt_logprobs": 1},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.0},
    ]
    requests = [
        new_request(i, prompt, SamplingParams(max_tokens=6, seed=i, ignore_eos=True, **kinds[i % len(kinds)]), LIMITS)
        for i, prompt in enumerate(prompts(count, seed=4))
    ]
    serve(runner, requests, seqs=seqs, budget=budget)
    return [(*bits(request), request.prompt_scores) for request in requests]


@pytest.mark.parametrize("name", ENGINES)
def test_the_same_bits_as_every_call_by_itself(name: str, engines: dict[str, Engine], isa: str) -> None:
    """One row, two, several and many, alone and among others, on one thread and on more."""
    engine = engines[name]
    size: dict[str, Any] = {"pages": 200, "max_tokens": 64, "max_requests": 32}
    plain = crowd(native_executor(engine, plain=True, **size), 12, 1, 64)
    for threads, seqs, budget in ((1, 1, 64), (2, 1, 1), (2, 2, 2), (3, 1, 40), (2, 7, 16), (3, 12, 64)):
        assert crowd(native_executor(engine, threads=threads, **size), 12, seqs, budget) == plain, (threads, seqs)


def fused(recipe: Recipe, *names: str) -> Plan:
    plan = plan_of(recipe)
    for name in names:
        plan = by_name(name).apply(plan)
    return plan


def test_what_stands_behind_a_layer() -> None:
    assert together(plan_of(GPT)) == {"attn.o": "add", "mlp.up": "act", "mlp.down": "add"}
    assert together(plan_of(LLAMA)) == {"attn.o": "add", "mlp.down": "add"}  # gate and up are two layers
    assert together(fused(LLAMA, "gate_up")) == {"attn.o": "add", "mlp.gate_up": "act", "mlp.down": "add"}
    assert together(fused(LLAMA, "gate_up", "add_norm")) == {"mlp.gate_up": "act"} | {"mlp.down": "add"}


@pytest.mark.parametrize(
    "why", ["another reads it first", "not halves", "more than halves", "results over inputs", "a part is activated"]
)
def test_what_does_not_stand_behind_it(why: str) -> None:
    plan = fused(LLAMA, "gate_up")
    linear = next(i for i, call in enumerate(plan.calls) if call.path.endswith("0.mlp.gate_up"))
    buffers, calls = dict(plan.buffers), list(plan.calls)
    gated = calls[linear + 1]
    if why == "another reads it first":
        calls.insert(linear + 1, calls[linear - 1])
    elif why == "not halves":
        buffers["gate"] = replace(buffers["gate"], width=40)
    elif why == "more than halves":
        buffers["gate_up"] = replace(buffers["gate_up"], width=112)
    elif why == "results over inputs":
        calls[linear + 1] = replace(gated, outs={"out": calls[linear].ins["x"]})
    else:
        calls[linear + 1] = replace(gated, op="activation", ins={"x": gated.ins["up"]})
    changed = replace(plan, buffers=buffers, calls=tuple(calls))
    found = joints(changed, lambda call: call.op == "linear")
    assert "blocks.0.mlp.gate_up" not in found
    assert "blocks.0.attn.o" in found


def test_only_a_layer_of_the_core_has_something_behind_it() -> None:
    assert not joints(plan_of(GPT), lambda call: False)
    core, isa = native.find().core, native.find().isa
    assert [core.is_linear(isa, name) for name in ("linear", "codes_int4_int8", "linear_add", "rmsnorm")] == [
        True,
        True,
        False,
        False,
    ]
    assert [core.is_by_rows(isa, name) for name in ("rmsnorm", "rotary", "gated", "linear")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match="no kernel is named abacus"):
        core.is_linear(isa, "abacus")


@pytest.mark.parametrize(
    ("says", "width", "behind", "kernel", "wrote"),
    [
        ("no linear layer", 32, (2, 0, -1, False), "rmsnorm", 2),
        ("must be the next call", 32, (2, 0, 3, False), "linear", 3),
        ("must have its width", 48, (2, 0, 3, False), "linear", 2),
        ("must have its width", 32, (2, 0, 3, True), "linear", 2),
        ("end where panels do", 80, (2, 0, 3, True), "linear", 2),
    ],
)
def test_what_cannot_stand_behind_a_layer_is_refused(
    says: str, width: int, behind: tuple[int, int, int, bool], kernel: str, wrote: int
) -> None:
    """Before any step: the core trusts no plan."""
    core, isa = native.find().core, native.find().isa
    program = core.Program(isa, 1, 4, 64)
    with pytest.raises(ValueError, match="no call behind which"):
        program.behind(0, 0, -1, False)
    for wide in (width, 40 if width == 80 else 32, 32):
        program.buffer(0, wide, 1, 0)
    for name, out in ((kernel, 1), ("gated", wrote)):
        program.call(0)
        program.choice(0, name, [1e-5, 1], [1, 0, 0], [out], "", [])
        if out == 1:
            with pytest.raises(IndexError):
                program.behind(99, 0, -1, False)
            program.behind(*behind)
    program.logits(1)
    with pytest.raises(ValueError, match=says):
        program.reserve([1, 1, 1], 0, [], 0)


def hostile(recipe: Recipe, rows: dict[int, float]) -> MemoryEngine:
    """An engine whose head gives these tokens these logits, times the hidden state's sum."""
    weights = random_weights(recipe)
    for token, value in rows.items():
        weights["head.weight"][token] = value
    return MemoryEngine(natively(plan_of(recipe)), weights)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "rows",
    [
        {3: torch.nan},
        {VOCAB - 1: torch.inf},
        {VOCAB - 1: torch.nan, 0: torch.inf},
        dict.fromkeys(range(VOCAB), 0.25),  # all alike: the first wins
        dict.fromkeys(range(0, VOCAB, 7), 9.0) | dict.fromkeys(range(3, VOCAB, 7), -9.0),
    ],
    ids=["NaN", "infinity", "both", "all alike", "ties"],
)
def test_what_the_head_notes_is_what_the_sampler_finds(rows: dict[int, float], threads: int) -> None:
    engine, step = hostile(LLAMA, rows), one_step([*prompts(1, seed=2)[0][:9], 1, 2], WANT_ALL)
    plain = native_executor(engine, plain=True).run(step)
    noted = native_executor(engine, threads=threads).run(step)
    for name in ("tokens", "logprobs", "finite", "logits"):
        assert getattr(noted, name).tobytes() == getattr(plain, name).tobytes(), name
    assert noted.candidates == plain.candidates
    assert bool(noted.finite[0]) == all(np.isfinite(list(rows.values())))


def lacking_room(plan: Plan, together: Any, _: Any) -> dict[str, int]:
    """Regions that forget that a thread may still read what another goes on to write."""
    return dict(regions(plan, together))


def test_where_memory_is_written_anew_all_meet_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of two rows, over and over: all meet less often than once a call, and once more where they must."""

    def meetings(**options: Any) -> int:
        runner = native_executor(engine, **options)
        runner.run(one_step([5, 6], WANT_ALL))
        return int(runner._core.meetings())

    engine = native_engine(GPT)
    apart = crowd(native_executor(engine, plain=True, pages=200, max_requests=12), 6, 1, 16)
    assert meetings() < meetings(plain=True) == len(engine.manifest.plan.calls)
    least = meetings()
    monkeypatch.setattr("allotrope.runtime.native.regions", lacking_room)
    assert meetings() > least
    for _ in range(20):
        assert crowd(native_executor(engine, threads=2, pages=200, max_requests=12), 6, 2, 2) == apart


def times(runner: NativeExecutor, tokens: int) -> Iterator[tuple[str, float]]:
    output = runner.run(one_step([5] * tokens, WANT_ALL))
    assert output.timed is not None
    call_s, before_s = output.timed.seconds()
    assert before_s + call_s.sum() <= output.busy_s
    yield from zip((call.op for call in runner.plan.calls), call_s.tolist(), strict=True)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_clock_tells_apart_what_is_computed_together(engines: dict[str, Engine], threads: int) -> None:
    """Alone in its step or behind a layer: each call has its time, and most of it is the layer's."""
    engine = engines["llama, 8 bits"]
    runner = native_executor(engine, threads=threads, timed=True, max_tokens=32, max_requests=32)
    for tokens in (1, 3, 30):
        runs = [list(times(runner, tokens)) for _ in range(5)]
        ops = [op for op, _ in runs[0]]
        most = np.max(
            [[took for _, took in run] for run in runs], axis=0
        )  # a thread that moves to another core may lose one
        assert (most > 0).all()
        gated, linear = (
            sum(took for op, took in zip(ops, most, strict=True) if op == one) for one in ("gated", "linear_codes")
        )
        assert gated < linear
