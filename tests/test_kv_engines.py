"""Engines with narrow keys and values: a request's bits are its own, in every executor, and builds say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Plan
from allotrope.build import build
from allotrope.build.check_whole import check_whole
from allotrope.build.options import BuildOptions
from allotrope.cli import main
from allotrope.errors import BuildError, EngineError, UsageError
from allotrope.models.lower import lower
from allotrope.ops import registry
from allotrope.ops.kv_codes import fake
from allotrope.ops.kv_rows import NARROW, row_width
from allotrope.quant.cache import with_cache
from allotrope.runtime.buffers import make_caches, page_bytes
from allotrope.runtime.eager import EagerExecutor
from tests import engine_kit
from tests.engines import CPU, GPT, LLAMA, MemoryEngine, deterministic, random_weights
from tests.test_graph import Traffic, capturable, compare, executor
from tests.tiny import FAMILIES
from tests.verifying import VOCAB, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
by_form = pytest.mark.parametrize("form", NARROW)
NEW = 6


def asked(vocab: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, two of which begin alike, greedy and drawn."""
    random = np.random.default_rng(5)
    prompts = [random.integers(3, vocab, int(random.integers(1, 30))).tolist() for _ in range(9)]
    prompts.append([*prompts[0], *random.integers(3, vocab, 9).tolist()])
    kinds = ({"temperature": 0.0}, {"temperature": 1.2, "top_k": 40})
    params = [SamplingParams(max_tokens=NEW, seed=i, logprobs=2, **kinds[i % 2]) for i in range(len(prompts))]
    return prompts, params


def answers(path: Path, **options: Any) -> list[Any]:
    """Token ids and the bits of their log-probabilities, all requests at once."""
    with LLM(str(path), **options) as llm:
        prompts, params = asked(llm.engine.manifest.plan.vocab)
        found = llm.generate(prompts, params)
        return [_bits(result) for result in found]


def _bits(result: Any) -> Any:
    out = result.outputs[0]
    return list(out.token_ids), repr(out.logprobs)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_requests_bits_are_its_own(kind: str, tmp_path: Path) -> None:
    """Alone and in a batch, in chunks, after others with the same beginning, preempted: for every family."""
    source = checkpoint(kind, tmp_path / "c")
    found = []
    for form in NARROW:
        path = build(str(source), tmp_path / form, device="cpu", tune="off", kv=form).path
        alone = answers(path, max_num_seqs=1, prefix_cache=False, page_size=4)
        assert len({str(tokens) for tokens, _ in alone}) > len(alone) // 2
        for options in (
            {"page_size": 16},
            {"max_batched_tokens": 5, "page_size": 1},
            {"max_num_seqs": 3, "page_size": 64},
            {"kv_memory": 12 * page_bytes(open_engine(path).manifest.plan, 4), "page_size": 4},
        ):
            assert answers(path, **options) == alone, options
        with LLM(str(path), page_size=4, prefix_cache=True) as llm:
            prompts, params = asked(VOCAB)
            for _ in range(2):
                assert [_bits(result) for result in llm.generate(prompts, params)] == alone
            assert llm.metrics()["prefix_hit_tokens"] > 0
            beams = SamplingParams(max_tokens=5, temperature=0.0, beams=3, n=3)
            together = llm.generate([*prompts[:3], prompts[4]], [beams, *params[1:3], beams])
        with LLM(str(path), max_num_seqs=3, prefix_cache=False, page_size=1) as llm:
            for place, prompt in ((0, prompts[0]), (3, prompts[4])):
                (searched,) = llm.generate([prompt], beams)
                assert [one.token_ids for one in searched.outputs] == [one.token_ids for one in together[place].outputs]
                assert [one.score for one in searched.outputs] == [one.score for one in together[place].outputs]
        found.append(alone)
    assert found[0] != found[1]


def test_the_small_pool_above_does_preempt(tmp_path: Path) -> None:
    path = build(str(checkpoint("gpt2", tmp_path / "c")), tmp_path / "e", device="cpu", tune="off", kv="int8").path
    with LLM(str(path), kv_memory=12 * page_bytes(open_engine(path).manifest.plan, 4), page_size=4) as llm:
        llm.generate(*asked(VOCAB))
        assert llm.metrics()["preemptions"] > 0


@by_form
@pytest.mark.parametrize(("recipe", "dtype"), [(LLAMA, "fp32"), (GPT, "bf16")], ids=["llama", "gpt"])
def test_a_graph_holds_it(recipe: Any, form: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded steps read and write the same bytes, in memory poisoned before each."""
    monkeypatch.setattr("allotrope.runtime.graph.CONTEXT", 8)
    plan = capturable(deterministic(with_cache(lower(recipe, dtype), form)))
    engine = MemoryEngine(plan, random_weights(recipe, dtype=dtype))
    compare(engine, plan, list(Traffic(recipe.vocab, 40, seed=2).steps(40)))


@by_form
def test_it_is_the_wide_model_over_faked_keys_and_values(form: str) -> None:
    """`fake` is what writing and reading does: put into a wide cache it gives the narrow one's logits."""
    wide = deterministic(lower(LLAMA))
    heads = wide.cache.kv_heads
    engine = MemoryEngine(wide, random_weights(LLAMA))

    def faked(call: Any, outs: Any) -> None:
        if call.op == "kv_write":
            for cache in outs.values():
                cache.copy_(fake(cache, heads, form))

    steps = list(Traffic(LLAMA.vocab, 40, seed=4).steps(25))

    def logits(plan: Plan, tap: Any = None) -> torch.Tensor:
        runner = executor(EagerExecutor, engine, plan)
        return torch.cat([runner.run(step, tap).logits.float().clone() for step in steps])

    narrow = logits(with_cache(wide, form))
    scale = narrow.square().mean().sqrt()
    # twice faked is what faked once was, but for the last bit of a scale
    assert (logits(wide, faked) - narrow).abs().max() < 1e-4 * scale
    assert (logits(wide) - narrow).abs().max() > 1e-3 * scale


@by_form
def test_pools_are_as_large_as_said_and_poison_shows(form: str) -> None:
    plan = with_cache(lower(LLAMA), form)
    caches = make_caches(plan, 3, 8, "cpu", poison=True)
    assert sum(cache.nbytes for cache in caches.values()) == 3 * page_bytes(plan, 8)
    assert page_bytes(plan, 1) == 2 * 2 * row_width(form, 2, 8) == 2 * 2 * (32 if form == "fp16" else 24)
    assert fake(torch.ones(1, 4), 2, form).isfinite().all()
    tactic, call = registry.tactic("attention", "reference"), next(c for c in plan.calls if c.op == "attention")
    ins = {"q": torch.ones(1, 32), "k_cache": caches["c:0.k"], "v_cache": caches["c:0.v"]}
    ins |= {"row_starts": torch.tensor([0, 1]), "row_first": torch.tensor([0]), "page_table": torch.tensor([[1]])}
    out = {"out": torch.zeros(1, 32)}
    tactic.run(out, ins, call.params, None)
    assert out["out"].isnan().all()


def test_with_cache_can_be_taken_back() -> None:
    plan = lower(LLAMA)
    narrow = with_cache(plan, "fp8")
    told = [call.params["kv"] for call in narrow.calls if call.op in ("kv_write", "attention")]
    assert told == ["fp8"] * 4 and narrow.cache.dtypes == ("fp8", "fp8")
    assert Plan.from_json(narrow.to_json()) == narrow
    assert with_cache(narrow, "compute").cache == plan.cache
    with pytest.raises(UsageError, match=r"the KV format is 'int4'; choose one of compute, int8, fp8"):
        with_cache(plan, "int4")


def test_a_build_says_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint("llama-grouped", tmp_path / "c")
    given = ["build", str(source), "-o", str(tmp_path / "e"), "--kv", "int8", "--tune", "off", "--device", "cpu"]
    assert main(given) == 0
    assert "KV cache: int8, 240 B per token instead of 768 B" in capsys.readouterr().out
    assert main([*given, "--json"]) == 0
    told = capsys.readouterr().out
    kept = {
        "format": "int8",
        "layers": ["int8"] * 3,
        "exceptions": {},
        "bytes_per_token": 240,
        "bytes_per_token_wide": 768,
    }
    assert json.loads(told.splitlines()[-1])["kv"] == kept
    assert open_engine(tmp_path / "e").manifest.evidence["kv"] == kept
    assert main(["inspect", str(source), "--kv", "int8"]) == 0
    assert "240 B per token as int8" in capsys.readouterr().out


def test_another_format_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match=r"build: kv is 'int4'; choose int8, fp8, fp16, or leave it out"):
        BuildOptions(kv="int4")


def test_the_whole_check_finds_keys_taken_for_values(tmp_path: Path) -> None:
    """Wider than rounding though its floor is: a call that caches the wrong columns is found."""
    lowered = with_cache(lower(GPT), "int8")
    engine = MemoryEngine(deterministic(lowered), random_weights(GPT))
    assert check_whole(engine, lowered, CPU, BuildOptions())["same_top1"] == 1.0  # type: ignore[arg-type]
    calls = list(engine.manifest.plan.calls)
    place = max(i for i, call in enumerate(calls) if call.op == "kv_write")
    ins = calls[place].ins
    calls[place] = replace(calls[place], ins={**ins, "k": ins["v"], "v": ins["k"]})
    wrong = MemoryEngine(replace(engine.manifest.plan, calls=tuple(calls)), random_weights(GPT))
    with pytest.raises(BuildError, match="the whole model differs from its reference plan"):
        check_whole(wrong, lowered, CPU, BuildOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan["cache"].update(dtypes=["int4", "compute"]), "KV format 'int4' is unknown"),
        (
            lambda plan: plan["cache"].update(dtypes=["int8", "compute"]),
            "the cache's rows are 20 wide; 1 heads of 12 as compute take 12",
        ),
        (
            lambda plan: _params(plan, "attention").update(kv="int8"),
            "rows are 12 wide; 2 heads of 6 as int8 take 20",
        ),
        (lambda plan: _params(plan, "kv_write").update(kv="fp8", kv_heads=2), "12 wide; 2 heads of 6 as fp8 take"),
        (lambda plan: _params(plan, "kv_write").update(kv="int3"), "parameter kv is 'int3'"),
        (lambda plan: _params(plan, "attention").update(kv=["int8"]), "parameter kv is ['int8']"),
    ],
)
def test_an_engine_that_contradicts_itself_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    engine_kit.write(tmp_path / "e")
    data = engine_kit.load(tmp_path / "e")
    change(data["plan"])
    engine_kit.store(tmp_path / "e", data)
    with pytest.raises(EngineError) as caught:
        open_engine(tmp_path / "e")
    assert words in str(caught.value)


def test_other_heads_than_the_caches_are_refused(tmp_path: Path) -> None:
    """Rows of the same length, cut otherwise: codes of one head with another's scale."""
    engine_kit.write(tmp_path / "e")
    data = engine_kit.load(tmp_path / "e")
    plan = with_cache(Plan.from_json(data["plan"]), "int8").to_json()
    data["plan"] = plan
    engine_kit.store(tmp_path / "e", data)
    assert open_engine(tmp_path / "e").manifest.plan.cache.words == "int8"
    _params(plan, "kv_write").update(kv="fp8")
    engine_kit.store(tmp_path / "e", data)
    with pytest.raises(EngineError, match="parameter kv is 'fp8', its cache's is 'int8'"):
        open_engine(tmp_path / "e")


def _params(plan: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(call["params"] for call in plan["calls"] if call["op"] == op)
    return found
