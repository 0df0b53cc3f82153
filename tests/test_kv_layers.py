"""Layers whose keys and values are kept otherwise than the others': asked for, stored, computed, verified, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Plan
from allotrope.bench.limit import limit
from allotrope.bench.watch import Step
from allotrope.build import build
from allotrope.cli import main
from allotrope.errors import EngineError, UsageError
from allotrope.models.lower import lower
from allotrope.ops.kv_codes import fake
from allotrope.ops.kv_rows import row_width
from allotrope.quant.cache import with_cache
from allotrope.quant.policy import Policy, Wanted, policy
from allotrope.runtime.buffers import make_caches, page_bytes
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.step import WANT_LAST
from allotrope.verify.text import widening_lines
from allotrope.verify.verdict import IDENTICAL
from tests import engine_kit
from tests.engines import LLAMA, MemoryEngine, deterministic, random_weights
from tests.narrow_engines import Narrow, asked
from tests.test_graph import Traffic, capturable, compare, executor
from tests.test_kv_engines import answers
from tests.test_kv_engines import asked as requests
from tests.verifying import VOCAB, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
MIXED = ("fp8", "compute")
PATHS = [f"blocks.{i}.attn.kv" for i in range(3)]
THREE = replace(LLAMA, blocks=(*LLAMA.blocks, LLAMA.blocks[0]))
LINEARS = 7 * len(THREE.blocks) + 1


def chosen(**wanted: Any) -> Policy:
    return policy(lower(THREE), Wanted(**wanted))


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ((), ("fp8", "fp8", "fp8")),
        (("blocks.1.attn.kv=wide",), ("fp8", "compute", "fp8")),
        (("*.kv=int8", "blocks.2.*=wide"), ("int8", "int8", "compute")),
        (("blocks.2.*=wide", "*.kv=int8"), ("int8", "int8", "int8")),
        (("blocks.0.*=fp32", "blocks.1.*=fp16", "*.q=int8"), ("compute", "fp16", "fp8")),
    ],
)
def test_the_last_pattern_that_matches_wins(keep: tuple[str, ...], expected: tuple[str, ...]) -> None:
    found = chosen(kv="fp8", keep=keep)
    assert found.kv == dict(zip(PATHS, expected, strict=True))
    assert len(found.formats) == LINEARS


def test_a_pattern_that_matches_weights_too_applies_to_both() -> None:
    found = chosen(weights="int8", kv="int8", keep=("blocks.1.*=wide",))
    assert [found.words(path) for path in PATHS] == ["int8 per token and head", "wide", "int8 per token and head"]
    assert {found.formats[path] for path in found.formats if path.startswith("blocks.1.")} == {None}
    first, second, *_ = found.lines()
    assert second == "blocks.1: wide" and "attn.kv int8 per token and head" in first
    alone = chosen(weights="int8", keep=("blocks.1.*=wide",))
    assert alone.kv == {} and alone.formats == found.formats
    assert chosen(method="auto", kv="fp8", keep=("*.kv=int8",)).narrow == {}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            {"weights": "int8", "keep": ("blocks.1.attn.kv=wide",)},
            "--keep 'blocks.1.attn.kv' names keys and values, and all of them stay wide; add --kv int8 or fp8",
        ),
        (
            {"kv": "fp8", "keep": ("*.kv=int4",)},
            "--keep '*.kv' names keys and values, which cannot be int4; give wide, int8, fp8",
        ),
        ({"kv": "fp8", "keep": ("*.kv=int8:64",)}, "names keys and values, which cannot be int8:64"),
        ({"kv": "fp8", "keep": ("*.kv=bf16",)}, "names keys and values, which cannot be bf16"),
        ({"kv": "fp8", "keep": ("*.5.attn.kv=wide",)}, "'*.5.attn.kv' matches no linear layer and no cache"),
        (
            {"kv": "fp8", "method": "gptq", "keep": ("*.kv=int8",)},
            "--method is gptq, but no weights are to be quantised",
        ),
        (
            {"kv": "int8", "group_size": 64, "keep": ("*.kv=int8",)},
            "--group-size is 64, but no weights are to be int8 or int4",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        chosen(**wanted)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_each_layer_has_its_own_pool() -> None:
    plan = with_cache(lower(LLAMA), MIXED)
    assert plan.cache.words == "fp8 in 1 layer, wide in 1 layer"
    assert Plan.from_json(plan.to_json()) == plan
    told = [call.params.get("kv", "compute") for call in plan.calls if call.op in ("kv_write", "attention")]
    assert told == ["fp8", "fp8", "compute", "compute"]
    caches = make_caches(plan, 3, 8, "cpu", poison=False)
    assert (caches["c:0.v"].dtype, caches["c:1.v"].dtype) == (torch.uint8, torch.float32)
    assert sum(cache.nbytes for cache in caches.values()) == 3 * page_bytes(plan, 8)
    assert page_bytes(plan, 1) == 2 * (row_width("fp8", 2, 8) + 4 * 16)
    assert with_cache(plan, "compute").cache == lower(LLAMA).cache
    with pytest.raises(ValueError, match="3 KV formats for 2 layers"):
        with_cache(plan, ("fp8",) * 3)


def test_a_layer_rounds_what_it_keeps_and_no_other_does() -> None:
    """As if `fake` had been put into the wide cache of that layer."""
    wide, steps = deterministic(lower(LLAMA)), list(Traffic(LLAMA.vocab, 40, seed=4).steps(25))
    engine = MemoryEngine(wide, random_weights(LLAMA))

    def faked(call: Any, outs: Any) -> None:
        if call.op == "kv_write" and call.path.startswith("blocks.0."):
            for cache in outs.values():
                cache.copy_(fake(cache, wide.cache.kv_heads, "fp8"))

    def logits(plan: Plan, tap: Callable[..., None] | None = None) -> torch.Tensor:
        runner = executor(EagerExecutor, engine, plan)
        return torch.cat([runner.run(step, tap).logits.float().clone() for step in steps])

    mixed = logits(with_cache(wide, MIXED))
    scale = mixed.square().mean().sqrt()
    assert (logits(wide, faked) - mixed).abs().max() < 1e-4 * scale
    assert min((logits(plan) - mixed).abs().max() for plan in (wide, with_cache(wide, "fp8"))) > 1e-3 * scale


def test_a_graph_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are copied in every layer's own size, too."""
    monkeypatch.setattr("allotrope.runtime.graph.CONTEXT", 8)
    plan = capturable(deterministic(with_cache(lower(LLAMA), MIXED)))
    engine = MemoryEngine(plan, random_weights(LLAMA))
    assert compare(engine, plan, list(Traffic(LLAMA.vocab, 40, seed=2).steps(40)))._recorded


def test_a_requests_bits_are_its_own(tmp_path: Path) -> None:
    source, keep = checkpoint("llama", tmp_path / "c"), ("blocks.1.attn.kv=wide", "blocks.2.attn.kv=int8")
    path = build(str(source), tmp_path / "e", device="cpu", tune="off", kv="fp8", keep=keep).path
    plan = open_engine(path).manifest.plan
    assert plan.cache.dtypes == ("fp8", "compute", "int8")
    alone = answers(path, max_num_seqs=1, prefix_cache=False, page_size=4)
    for options in (
        {"page_size": 16},
        {"max_batched_tokens": 5, "page_size": 1},
        {"kv_memory": 12 * page_bytes(plan, 4), "page_size": 4},
    ):
        assert answers(path, **options) == alone, options
    beams = SamplingParams(max_tokens=5, temperature=0.0, beams=3, n=3)
    found = []
    for size in (1, 4):  # pages shared by beams are copied before they are written
        with LLM(str(path), page_size=size) as llm:
            (searched,) = llm.generate(requests(VOCAB)[0][:1], [beams])
            found.append([(one.token_ids, one.score) for one in searched.outputs])
    assert found[0] == found[1]


def test_a_build_says_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, keep = checkpoint("llama-grouped", tmp_path / "c"), "blocks.1.attn.kv=wide"
    given = ["--kv", "int8", "--keep", keep]
    built = ["build", str(source), "-o", str(tmp_path / "e"), *given, "--tune", "off", "--device", "cpu"]
    assert main(built) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "blocks.1: wide" in lines and any("attn.kv int8 per token and head" in x for x in lines)
    assert "KV cache: int8 in 2 layers, wide in 1 layer, 416 B per token instead of 768 B" in lines
    assert main([*built, "--json"]) == 0
    kept = json.loads(capsys.readouterr().out.splitlines()[-1])["kv"]
    assert kept == open_engine(tmp_path / "e").manifest.evidence["kv"]
    assert kept["layers"] == ["int8", "compute", "int8"] and kept["exceptions"] == {PATHS[1]: f"--keep '{keep}'"}
    assert kept["bytes_per_token"] == 416
    assert main(["inspect", str(source), *given]) == 0
    assert "416 B per token as int8, fp32" in capsys.readouterr().out
    assert main([*built[:4], "--keep", keep, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "add --kv int8 or fp8" in said


def test_inspect_predicts_layer_by_layer(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["inspect", "random:llama-7b", "--weights", "int8", "--kv", "fp8", "--keep", "blocks.3.*=wide"]
    given += ["--device", "cpu", "--json"]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    narrow, wide = 2 * (4096 + 4 * 32), 2 * 4 * 4096
    assert found["bytes"]["kv_per_token"] == 31 * narrow + wide
    assert found["dtypes"] == {"weights": "int8 per channel, the rest fp32", "kv": "fp8, fp32"}
    short, full = (found["predicted"][0][name] for name in ("bytes_read", "bytes_read_full"))
    assert full - short == (found["limits"]["max_len"] - 1) * (31 * narrow + wide)


def test_the_limit_counts_each_layers_keys() -> None:
    step = Step(np.array([0, 1]), np.array([29]), np.full(1, WANT_LAST, np.uint8), np.ones(1, np.bool_))

    def moved(plan: Plan) -> float:
        return limit(plan, [step], None).bytes

    plan = lower(LLAMA)
    wide, narrow = moved(plan), moved(with_cache(plan, "fp8"))
    assert moved(with_cache(plan, MIXED)) == (wide + narrow) / 2 < wide


def test_it_is_verified_and_attributed(narrow: Narrow) -> None:
    path = narrow("llama", kv="fp8", weights="int8", keep=["blocks.1.*=wide", "blocks.2.attn.kv=int8"])
    found = asked(path, attribute=True).findings
    assert found.implementation == IDENTICAL, (found.located, found.tokens)
    assert found.formats == ("14 weights int8", "keys and values fp8 in 1 layer, wide in 1 layer, int8 in 1 layer")
    assert found.attribution is not None
    kept = {share.module: share.format for share in found.attribution.modules if share.module.endswith(".kv")}
    assert kept == {PATHS[0]: "kv fp8", PATHS[2]: "kv int8"}
    share = next(share for share in found.attribution.modules if share.module == PATHS[0])
    advice = widening_lines(replace(found.attribution, modules=(replace(share, saved=1.0),)))
    assert advice[-1] == "  allotrope build … --keep 'blocks.0.attn.kv=wide'"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan["cache"].update(dtypes=["int8", "compute"]), "parameter kv is 'fp8', its cache's is 'int8'"),
        (
            lambda plan: plan["cache"].update(dtypes=["fp8", "int8"]),
            "rows are 20 wide; 1 heads of 12 as compute take",
        ),
        (lambda plan: plan["cache"].update(dtypes=["fp8", ["compute"]]), "KV format ['compute'] is unknown"),
        (lambda plan: plan["cache"].update(dtypes=[]), "plan.cache.layers is 0"),
        (lambda plan: plan["cache"].update(dtypes=["fp8"]), "slot 'c:1.k' does not exist"),
        (lambda plan: plan["cache"].update(dtypes=["fp8", "compute", "fp8"]), "uses 4 caches, 3 layers have 6"),
        (lambda plan: plan["cache"].update(dtypes=7), "not iterable"),
        (lambda plan: plan["cache"].update(layers=2), "unexpected keyword argument 'layers'"),
        (lambda plan: plan["cache"].pop("dtypes"), "dtypes"),
        (
            lambda plan: plan["calls"][_last_write(plan)]["ins"].update(k_cache="c:0.k"),
            "axis cache_width of op",
        ),
    ],
)
def test_an_engine_that_contradicts_itself_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    engine_kit.write(tmp_path / "e")
    data = engine_kit.load(tmp_path / "e")
    data["plan"] = with_cache(Plan.from_json(data["plan"]), MIXED).to_json()
    engine_kit.store(tmp_path / "e", data)
    assert open_engine(tmp_path / "e").manifest.plan.cache.dtypes == MIXED
    change(data["plan"])
    engine_kit.store(tmp_path / "e", data)
    with pytest.raises(EngineError) as caught:
        open_engine(tmp_path / "e")
    assert words in str(caught.value)


def _last_write(plan: dict[str, Any]) -> int:
    return max(i for i, call in enumerate(plan["calls"]) if call["op"] == "kv_write")
