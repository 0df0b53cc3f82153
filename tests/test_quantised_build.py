"""Engines built from checkpoints in codes: no code is rounded again, and they say what the wide weights say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope import cli
from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import Engine, open_engine
from allotrope.artifact.plan import Call, name
from allotrope.build import build
from allotrope.errors import AllotropeError
from allotrope.models.model import open_model
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.stored import Stored
from allotrope.ops.codes import decoded
from allotrope.quant.formats import Format, dequantise
from allotrope.quant.held import repack
from tests.quantised_folder import CT, quantised
from tests.quantised_kit import grid, reals, shuffled
from tests.test_quantised_models import CASES, STORED

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"device": "cpu", "tune": "off", "threads": 1, "without": "native"}
FEW = ("gptq", "gptq-order", "awq", "int4-points", "int8-acts")
BUILT = [(kind, case) for kind, case in CASES if kind == "llama" or case in FEW]
PROMPTS = [[3, 17, 99, 5, 41], [7], [12, 13, 14, 15, 16, 17, 18]]


def tokens(engine: Path) -> list[tuple[int, ...]]:
    with LLM(engine, threads=1) as llm:
        answers = llm.generate(PROMPTS, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    return [tuple(answer.outputs[0].token_ids) for answer in answers]


def meant(engine: Engine, call: Call) -> torch.Tensor:
    """The matrix that a call's stored bytes stand for, columns where the checkpoint has them."""
    held = {part: torch.from_numpy(engine.array(name(slot)).copy()) for part, slot in call.ins.items() if "w:" in slot}
    matrix = decoded(held["codes"], held["scales"], held.get("zeros"), str(call.params["format"]), torch.float32)
    block = ".".join(call.path.split(".")[:2]) + "."
    for other in engine.manifest.plan.calls:
        if other.op == "reorder" and other.outs["out"] == call.ins["x"] and other.path.startswith(block):
            return matrix[:, torch.from_numpy(engine.array(name(other.ins["order"])).copy()).long().argsort()]
    return matrix


@pytest.mark.parametrize(("kind", "case"), BUILT)
def test_an_engine_holds_the_checkpoints_own_numbers(kind: str, case: str, tmp_path: Path) -> None:
    """Every narrow weight of the engine means the checkpoint's bit for bit, and the tokens are the wide weights'."""
    folder = quantised(kind, tmp_path / "ckpt", STORED[case])
    built = build(str(folder), tmp_path / "engine", **QUICK)
    engine, wide = open_engine(tmp_path / "engine", check_digests=True), open_model(folder / "wide")
    calls = [call for call in built.manifest.plan.calls if call.op == "linear_codes"]
    parts = 0
    for call in calls:
        spec = engine.manifest.plan.weights[name(call.ins["codes"])]
        slots = [slot.removesuffix(".codes") + ".weight" for slot, _ in spec.parts]
        np.testing.assert_array_equal(meant(engine, call).numpy(), np.concatenate([wide.read(s)[0] for s in slots]))
        parts += len(slots)
    assert parts == len(open_model(folder).quantised)
    facts = built.manifest.evidence["quantisation"]
    assert facts["method"] == "as stored" and facts["total"]["noise"] == 0
    inputs = {call.params.get("activations", "none") for call in calls}
    assert inputs == {STORED[case].activations or "none"}
    if inputs == {"none"}:
        build(str(folder / "wide"), tmp_path / "plain", **QUICK)
        assert tokens(tmp_path / "engine") == tokens(tmp_path / "plain")


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(AllotropeError) as caught:
        build(str(folder), folder.parent / "refused", **QUICK, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_stored_is_not_rounded_again(tmp_path: Path) -> None:
    """Other formats are refused, the same may be said, and any layer may be wide."""
    folder = quantised("llama", tmp_path / "ckpt", STORED["gptq"])
    again = "its weight is stored as int4 in groups of 32 already, and"
    remedy = "would round it a second time; leave it out, or give the original checkpoint"
    assert refusal(folder, weights="int8") == f"blocks.0.attn.q: {again} --weights int8 per channel {remedy}"
    wider = refusal(folder, weights="int4", group_size=64)
    assert wider == f"blocks.0.attn.q: {again} --weights int4 in groups of 64 {remedy}"
    points = refusal(folder, weights="int4", asymmetric=True)
    assert points == f"blocks.0.attn.q: {again} --weights int4 in groups of 32, asymmetric {remedy}"
    kept = refusal(folder, keep=("blocks.1.mlp.up=int8",))
    assert kept == f"blocks.1.mlp.up: {again} int8 per channel {remedy}"
    assert refusal(folder, weights="fp16").startswith(f"blocks.0.attn.q: {again} --weights fp16 {remedy[:5]}")
    method = "--method is gptq, but the weights are quantised already; leave it out, or give the original checkpoint"
    assert refusal(folder, weights="int4", method="gptq") == method
    assert "matches no linear layer" in refusal(folder, keep=("blocks.9.*=wide",))
    kept_wide = ("blocks.0.*=wide", "head=int8")
    built = build(str(folder), tmp_path / "engine", weights="int4", keep=kept_wide, **QUICK)
    ops = {call.path: call.op for call in built.manifest.plan.calls if call.op.startswith("linear")}
    assert ops["blocks.0.attn.o"] == "linear" and ops["blocks.1.attn.o"] == "linear_codes" == ops["head"]
    found = open_engine(tmp_path / "engine").array("blocks.0.attn.o.weight")
    np.testing.assert_array_equal(found, open_model(folder / "wide").read("blocks.0.attn.o.weight")[0])


NO_FORMAT = [
    (Stored("gptq", 8, 32, False), "gptq weights (uint8, groups of 32) have zero points, which no format of 8 bits"),
    (
        Stored(CT, 8, -1, False, form="int-quantized", ignore=("lm_head",)),
        "compressed-tensors weights (int8, one scale per channel) have zero points, which no format of 8 bits has",
    ),
    (
        Stored("gptq", 4, 16, True),
        "gptq weights (int4, groups of 16) are in groups that are no multiple of",
    ),
    (
        Stored(CT, 8, 32, True, form="float-quantized", floating=True, ignore=("lm_head",)),
        "compressed-tensors weights (fp8, groups of 32) are in groups, and fp8 has one scale per row; --keep",
    ),
]


@pytest.mark.parametrize(("stored", "words"), NO_FORMAT, ids=lambda value: getattr(value, "words", ""))
def test_what_no_format_holds_is_refused_or_run_wide(stored: Stored, words: str, tmp_path: Path) -> None:
    folder = quantised("llama", tmp_path / "ckpt", stored)
    message = refusal(folder)
    assert message.startswith("blocks.0.attn.q: ") and words in message
    assert message.endswith("--keep 'blocks.*=wide' runs them wide, which is exact")
    built = build(str(folder), tmp_path / "engine", keep="blocks.*=wide", **QUICK)
    assert {call.op for call in built.manifest.plan.calls if call.op.startswith("linear_c")} == set()
    build(str(folder / "wide"), tmp_path / "plain", **QUICK)
    assert tokens(tmp_path / "engine") == tokens(tmp_path / "plain")


@pytest.mark.parametrize(("scales", "dtype"), [("bf16", "fp16"), ("fp32", "fp32")])
def test_scales_keep_their_value_in_the_least_dtype_that_holds_it(scales: str, dtype: str, tmp_path: Path) -> None:
    """bf16 of a usual size is exact in fp16; fp32 is not, and stays."""
    folder = quantised("llama", tmp_path / "ckpt", STORED["int4"], scales=scales)
    built = build(str(folder), tmp_path / "engine", **QUICK)
    plan, engine, wide = built.manifest.plan, open_engine(tmp_path / "engine"), open_model(folder / "wide")
    assert {weight.dtype for name, weight in plan.weights.items() if name.endswith(".scales")} == {dtype}
    for call in plan.calls:
        if call.op == "linear_codes" and call.path.endswith(".o"):
            np.testing.assert_array_equal(meant(engine, call).numpy(), wide.read(f"{call.path}.weight")[0])


def test_a_wider_group_is_several_of_ours(tmp_path: Path) -> None:
    """Groups of 256 and of 96 become groups of 128 and of 32 with equal scales; zeros and order go with them."""
    for group, ours in ((256, 128), (96, 32)):
        stored = Stored("gptq", 4, group, False)
        numbers = np.array(grid(8, 2 * group, 0, 15), np.uint8)
        zeros, order = np.array(grid(8, 2, 0, 15, 4), np.uint8), np.array(shuffled(2 * group, 2), np.int32)
        codes = Codes("uint4", numbers, reals(8, 2), zeros, group, order)
        made, places = repack(codes, Format("int4", ours, symmetric=False))
        assert made.format.group == ours and made.scales.shape == (8, 2 * group // ours) and stored.number == "uint4"
        assert places is not None
        found = dequantise(made, torch.float64).numpy()[:, places.argsort()]
        np.testing.assert_array_equal(found, codes.dequantised("fp64"))


def test_layers_that_share_an_order_share_what_is_put_in_order(tmp_path: Path) -> None:
    """As q, k and v of one input do: then they are still one product."""
    folder = quantised("qwen", tmp_path / "ckpt", STORED["gptq-order"])  # c_attn has one order for all three
    plan = build(str(folder), tmp_path / "engine", **QUICK).manifest.plan
    ordered = [call.path for call in plan.calls if call.op == "reorder" and call.path.startswith("blocks.1.")]
    assert ordered == [f"blocks.1.{path}.order" for path in ("attn.q", "attn.o", "mlp.gate", "mlp.up", "mlp.down")]
    assert "blocks.1.attn.qkv" in {call.path for call in plan.calls}


def test_16_bit_checkpoints_compute_in_their_own_dtype(tmp_path: Path) -> None:
    """What is wide is fp16, biases inside quantised modules, too; the codes have no say in it."""
    folder = quantised("gpt2", tmp_path / "ckpt", STORED["gptq"], dtype="float16")
    model = open_model(folder)
    assert model.dtypes == ("fp16",)
    assert {model.original_dtype(f"transformer.h.0.attn.c_attn.{part}") for part in ("weight", "bias")} == {"fp32"}
    build(str(folder), tmp_path / "engine", **QUICK)
    build(str(folder / "wide"), tmp_path / "plain", **QUICK)
    assert tokens(tmp_path / "engine") == tokens(tmp_path / "plain")


def test_a_build_shows_that_nothing_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What will be done, what it cost, and a refusal, in lines that fit."""
    folder = str(quantised("llama", tmp_path / "ckpt", STORED["gptq"]))
    quick = ["-o", str(tmp_path / "engine"), "--device", "cpu", "--tune", "off", "--threads", "1"]
    assert cli.main(["build", folder, *quick]) == 0
    text = capsys.readouterr().out
    assert text.startswith("blocks.0 … 2: int4 in groups of 32\n") and "kept as stored: 92.2 k weights, " in text
    assert "error 0 %" in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(tmp_path) not in line)
    assert cli.main(["build", folder, *quick, "--weights", "int8"]) == 2
    refused = capsys.readouterr().err
    assert "blocks.0.attn.q: its weight is stored as int4 in groups of 32 already, and --weights int8" in refused
    assert refused.count("\n") == 1


def test_inspect_says_how_codes_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = quantised("llama", tmp_path, STORED["awq"], dtype="float16")
    model = open_model(folder)

    def inspected(*options: str) -> tuple[dict[str, Any], str]:
        assert cli.main(["inspect", str(folder), "--device", "cpu", "--json", *options]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out.splitlines()[-1]), printed.err

    found, text = inspected()
    matrices = 3 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 96)
    codes = matrices // 2 + matrices // 32 * (2 + 0.5)
    assert found["bytes"]["weights"] == codes + 2 * (model.parameters - matrices) == model.checkpoint.nbytes
    assert found["stored"]["codes"] == "awq weights (uint4, groups of 32)"
    assert "codes       awq weights (uint4, groups of 32)\n" in text and "as codes, the rest fp16\n" in text
    assert max(map(len, text.splitlines())) <= 80
    wide, text = inspected("--weights", "fp16")
    assert wide["bytes"]["weights"] == 2 * model.parameters
    saved = wide["bytes"]["weights"] - found["bytes"]["weights"]
    assert wide["predicted"][0]["bytes_read"] - found["predicted"][0]["bytes_read"] == saved
