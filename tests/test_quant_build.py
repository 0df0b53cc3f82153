"""Building with narrow weights: the engine computes what its own codes mean, in every format, for every family."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope import native
from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import Engine, open_engine
from allotrope.artifact.plan import Plan
from allotrope.build import build
from allotrope.errors import NumericalError, UsageError
from allotrope.hw.detect import detect
from allotrope.models.model import Model, open_model
from allotrope.ops import check
from allotrope.verify.drive import Driver
from tests.engines import deterministic
from tests.narrow_kit import QUICK, checkpoint, decoded, slots_of, wide_twin
from tests.tiny import FAMILIES, rewrite_tensors
from tests.verifying import CPU, VOCAB

pytestmark = pytest.mark.usefixtures("one_thread")

FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8"},
    "int8 by 32": {"weights": "int8", "group_size": 32},
    "int4": {"weights": "int4"},
    "int4 asymmetric": {"weights": "int4", "asymmetric": True},
    "fp8": {"weights": "fp8"},
    "fp16": {"weights": "fp16"},
    "bf16": {"weights": "bf16"},
}
ROUNDED: dict[str, dict[str, Any]] = {  # while it runs
    "W8A8": {"weights": "int8", "activations": "int8"},
    "fp8 activations": {"weights": "fp8", "activations": "fp8"},
    "int8 cache": {"kv": "int8"},
    "fp8 cache": {"kv": "fp8"},
    "fp16 cache": {"kv": "fp16"},
}
PROMPTS = [[1, 2, 3], [7] * 9]
MIXED = {  # of three blocks each in formats of its own, q, k and v of the last in three
    "codes": ["blocks.0.*=int8", "blocks.1.*=int4", "blocks.2.*=fp8", "blocks.2.attn.k=int8", "blocks.2.attn.v=wide"],
    "floats": ["blocks.0.*=fp16", "blocks.1.*=bf16", "blocks.2.*=int8:32", "blocks.2.mlp.up=fp16"],
}
KNOWN = {"codes": {"int8", "int4", "fp8"}, "floats": {"int8"}}


def logits(engine: Any, plan: Plan | None = None) -> torch.Tensor:
    random = np.random.default_rng(3)
    sequences = [random.integers(0, VOCAB, n).tolist() for n in (19, 7, 1)]
    return Driver(engine, CPU, sequences=3, longest=32, tokens=40, plan=plan).walk(sequences)


def assert_computes_its_codes(engine: Engine, model: Model) -> None:
    """Against the wide model made of the decoded weights; the floor is what that model errs with the same tactics."""
    twin, plan = wide_twin(engine, model)
    truth, plain = logits(twin, plan), logits(twin, deterministic(plan))
    assert check.within(check.compare(logits(engine), truth), check.compare(plain, truth), "fp32") is None


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("mix", MIXED)
def test_every_family_in_every_format(tmp_path: Path, kind: str, mix: str) -> None:
    source = checkpoint(kind, tmp_path / "ckpt")
    build(str(source), tmp_path / "engine", keep=MIXED[mix], **QUICK)
    engine = open_engine(tmp_path / "engine", check_digests=True)
    assert {call.params.get("format") for call in engine.manifest.plan.calls} >= KNOWN[mix]
    assert_computes_its_codes(engine, open_model(source))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("llama", tmp_path_factory.mktemp("llama") / "ckpt")


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_model_in_one_format(tmp_path: Path, llama: Path, name: str) -> None:
    """The weights are what rounding to nearest gives, q, k and v stay one product, and the engine speaks."""
    asked = FORMATS[name]
    built = build(str(llama), tmp_path / "engine", **asked, **QUICK)
    plan, engine, model = built.manifest.plan, open_engine(tmp_path / "engine"), open_model(llama)
    narrow = "linear_stored" if asked["weights"] in ("fp16", "bf16") else "linear_codes"
    paths = [call.path for call in plan.calls if call.op == narrow]
    assert paths[:4] == [f"blocks.0.{part}" for part in ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down")]
    assert [call.path for call in plan.calls if call.op == "linear"] == ["head"]
    assert_computes_its_codes(engine, model)
    stored, slot = slots_of(engine), "blocks.1.mlp.down"
    right = model.read(f"{slot}.weight")[0].astype(np.float64)
    if narrow == "linear_codes":
        codes, scales, zeros = (stored.get(f"{slot}.{part}") for part in ("codes", "scales", "zeros"))
        found = decoded(asked["weights"], codes, scales, zeros).astype(np.float64)
        step = np.repeat(scales.astype(np.float64), right.shape[1] // scales.shape[1], axis=1)
        gap = step if asked["weights"] != "fp8" else step * np.maximum(2.0**-9, np.abs(found / step) * 2.0**-3)
        assert (np.abs(found - right) <= gap / 2 * (1 + 1e-6)).all()
    else:
        found = stored[f"{slot}.weight"].astype(np.float64)
        assert (np.abs(found - right) <= np.abs(right) * (2.0**-11 if name == "fp16" else 2.0**-8)).all()
    with LLM(tmp_path / "engine", threads=1) as llm:
        [answer] = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert len(answer.outputs[0].token_ids) == 4


def test_what_it_cost_is_written_down(tmp_path: Path, llama: Path) -> None:
    """One row per weight, the total over all, the policy and why there are exceptions."""
    lines: list[str] = []
    built = build(str(llama), tmp_path / "e", weights="int4", keep=["*.1.*=wide"], said=lines.append, **QUICK)
    assert lines == [
        "blocks.0: int4 in groups of 32",
        "blocks.1: wide",
        "blocks.2: int4 in groups of 32",
        "outside of blocks: wide",
    ]
    found = open_engine(tmp_path / "e").manifest.evidence["quantisation"]
    assert found == built.manifest.evidence["quantisation"]
    rows = {row["path"]: row for row in found["weights"]}
    layers = {f"blocks.{i}.{part}" for i in (0, 2) for part in ("attn.q", "attn.k", "attn.v", "attn.o")}
    layers |= {f"blocks.{i}.mlp.{part}" for i in (0, 2) for part in ("gate", "up", "down")}
    assert set(rows) == layers
    assert all(0.03 < row["relative"] < 0.15 and row["cosine"] > 0.99 for row in rows.values())
    assert found["total"]["weights"] == sum(row["weights"] for row in rows.values())
    assert found["total"]["bits_per_weight"] == 4.5
    assert found["method"] == "nearest"
    assert found["policy"]["blocks.0.attn.q"] == "int4 in groups of 32" and found["policy"]["blocks.1.mlp.up"] == "wide"
    assert found["exceptions"]["blocks.1.attn.k"] == "--keep '*.1.*=wide'"
    assert not (tmp_path / "e" / ".codes").exists()


def test_a_checkpoint_of_16_bits_kept_in_16_bits_loses_nothing(tmp_path: Path) -> None:
    source = checkpoint("llama", tmp_path / "ckpt", dtype="bfloat16")
    built = build(str(source), tmp_path / "engine", weights="bf16", **QUICK)
    total = built.manifest.evidence["quantisation"]["total"]
    assert total["noise"] == 0 and total["sqnr_db"] is None
    assert built.manifest.plan.calls[0].op == "embed_stored"
    wide = build(str(source), tmp_path / "wide", **QUICK)
    assert torch.equal(logits(open_engine(tmp_path / "engine")), logits(open_engine(wide.path)))


def test_a_head_of_its_own_may_be_narrow(tmp_path: Path, llama: Path) -> None:
    build(str(llama), tmp_path / "engine", keep=["head=int8"], **QUICK)
    engine = open_engine(tmp_path / "engine")
    assert [call.path for call in engine.manifest.plan.calls if call.op == "linear_codes"] == ["head"]
    assert_computes_its_codes(engine, open_model(llama))


def test_all_references_and_16_bits_of_compute(tmp_path: Path, llama: Path) -> None:
    """The last check of the build holds in both: it compares with decoded weights on references."""
    build(str(llama), tmp_path / "reference", weights="int4", plan="reference", **QUICK)
    assert_computes_its_codes(open_engine(tmp_path / "reference"), open_model(llama))
    for dtype in ("fp16", "bf16"):
        built = build(str(llama), tmp_path / dtype, weights="int8", **{**QUICK, "dtype": dtype})
        assert built.manifest.evidence["checks"]["whole_model"]["ok"]


def test_a_checkpoint_named_where_an_engine_is_wanted(llama: Path) -> None:
    """Built once per format, and kept."""
    options = {"device": "cpu", "tune": "off", "threads": 1}
    with LLM(llama, weights="int8", **options) as narrow, LLM(llama, **options) as wide:
        assert narrow.engine.path != wide.engine.path
    with LLM(llama, weights="int8", keep="blocks.0.*=wide", **options) as kept:
        assert kept.engine.path != narrow.engine.path


def test_weights_that_cannot_be_quantised(tmp_path: Path) -> None:
    """NaN, also where it is allowed otherwise; a value that 16 bits do not hold; a width that groups do not divide."""
    source = checkpoint("llama", tmp_path / "ckpt")
    name = "model.layers.1.mlp.down_proj.weight"

    def spoilt(value: float) -> None:
        rewrite_tensors(source, lambda old: {**old, name: old[name].index_fill(0, torch.tensor([2]), value)})

    spoilt(1e5)
    with pytest.raises(NumericalError, match=r"blocks\.1\.mlp\.down: the weight does not fit fp16; add --keep"):
        build(str(source), tmp_path / "engine", weights="fp16", **QUICK)
    spoilt(float("nan"))
    with pytest.warns(UserWarning, match="NaN"), pytest.raises(NumericalError, match=r"blocks\.1\.mlp\.down: .*NaN"):
        build(str(source), tmp_path / "engine", weights="int8", allow_nan=True, **QUICK)
    odd = checkpoint("llama", tmp_path / "odd", intermediate_size=80)
    with pytest.raises(UsageError, match=r"blocks\.0\.mlp\.down: group size is 32; it must divide the width, 80"):
        build(str(odd), tmp_path / "engine", weights="int4", **QUICK)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_in_eight_bits(tmp_path: Path, kind: str, form: str, dtype: str) -> None:
    """Every linear layer of the blocks multiplies codes with codes; that is near the same weights, and not the same."""
    source, options = str(checkpoint(kind, tmp_path / "ckpt")), {**QUICK, "dtype": dtype}
    build(source, tmp_path / "both", weights=form, activations=form, **options)
    build(source, tmp_path / "weights", weights=form, **options)
    both, weights = (open_engine(tmp_path / name) for name in ("both", "weights"))
    coded = [call for call in both.manifest.plan.calls if call.op == "linear_codes"]
    assert coded and all(call.params["activations"] == form for call in coded)
    assert "attn.qkv" in {call.path.partition(".")[2].partition(".")[2] for call in coded}
    found, near = logits(both).double(), logits(weights).double()
    apart = ((found - near).square().mean() / near.square().mean()).sqrt()
    assert 0 < apart < (0.06 if form == "int8" else 0.2)


class Nudged:
    """An engine whose embedding has other last bits: what it says otherwise for it is what rounding may do."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.manifest, self.dtype, self.forget = engine.manifest, engine.dtype, engine.forget
        self._engine, self._seed = engine, seed

    def array(self, name: str) -> Any:
        found, most = self._engine.array(name), check.tiny("fp32")
        if name != "embed.weight":
            return found
        noise = np.random.default_rng(self._seed).uniform(-most, most, found.shape)
        return (found * (1 + noise)).astype(np.float32)


def said(folder: Path) -> list[list[int]]:
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    with LLM(folder, threads=1) as llm:
        return [list(answer.outputs[0].token_ids) for answer in llm.generate(PROMPTS, params)]


def assert_the_same_within_the_floor(ends: list[Path]) -> None:
    """Two engines of the same codes, of which some are rounded as they run: a last bit may make one another."""
    engines, (text, other) = [open_engine(end) for end in ends], map(said, ends)
    sequences = [[*prompt, *tokens] for prompt, tokens in zip(PROMPTS, text, strict=True)]

    def walk(engine: Any) -> torch.Tensor:
        device = detect(engine.manifest.device["kind"])
        return Driver(engine, device, sequences=2, longest=40, tokens=80).walk(sequences).cpu()

    truth, found = map(walk, engines)
    nudged = [walk(Nudged(engines[0], seed)) for seed in range(8)]
    floor = reduce(check.larger, (check.compare(one, truth) for one in nudged))
    assert check.within(check.compare(found, truth), floor, "fp32") is None
    worst, start = max(nudged, key=lambda one: check.compare(one, truth).max_abs), 0
    for prompt, here, there in zip(PROMPTS, text, other, strict=True):
        apart = next((i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b), None)
        if apart is not None:
            row = truth[start + len(prompt) + apart - 1]
            assert check.choice_within(float(row[here[apart]] - row[there[apart]]), worst, truth, "fp32")
        start += len(prompt) + len(here)


@pytest.mark.parametrize("name", ["W8A8", "int8 cache", "fp8 cache"])
def test_the_core_and_torch_say_the_same(tmp_path: Path, llama: Path, name: str) -> None:
    if (core := native.find()).core is None:
        pytest.skip(str(core.why))
    executors = ("native", "eager")
    ends = [build(str(llama), tmp_path / one, executor=one, **ROUNDED[name], **QUICK).path for one in executors]
    assert_the_same_within_the_floor(ends)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*FORMATS, *ROUNDED])
def test_a_gpu_computes_the_same_codes(tmp_path: Path, llama: Path, name: str, dtype: str) -> None:
    """The codes are bit for bit the CPU's; in fp32 the engine says the same, token by token, in a graph too.

    Where it rounds as it runs, it does so within the floor.
    """
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    asked = (FORMATS | ROUNDED)[name]
    if dtype == "bf16" and asked.get("weights") == "fp16":
        pytest.skip("fp16 is no store for bf16")
    options = {**QUICK, **asked, "dtype": dtype, "without": "qkv,gate_up"}
    devices = ("cpu", "cuda")
    ends = [build(str(llama), tmp_path / device, **{**options, "device": device}).path for device in devices]
    here, there = (slots_of(open_engine(end)) for end in ends)
    assert here.keys() == there.keys()
    assert all(np.array_equal(here[slot], there[slot]) for slot in here)
    if dtype == "bf16":
        assert [len(tokens) for end in ends for tokens in said(end)] == [24] * 4
    elif name in ROUNDED:
        assert_the_same_within_the_floor(ends)
    else:
        assert said(ends[0]) == said(ends[1])


def test_one_group_to_a_row_is_a_scale_per_row(tmp_path: Path) -> None:
    """Whoever reads codes tells fp16 scales of groups from fp32 ones of rows by the number of groups."""
    source = checkpoint("llama", tmp_path / "ckpt", intermediate_size=128)
    build(str(source), tmp_path / "engine", weights="int4", group_size=64, **QUICK)
    engine = open_engine(tmp_path / "engine")
    kinds = {path: slots_of(engine)[f"blocks.0.mlp.{path}.scales"].dtype.name for path in ("up", "down")}
    assert kinds == {"up": "float32", "down": "float16"}
    assert_computes_its_codes(engine, open_model(source))
