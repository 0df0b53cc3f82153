"""Calibration: blocks run as the model does, folding changes nothing, what is killed goes on, and it helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope import settings, tokenizers
from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Plan
from allotrope.build import build
from allotrope.build.blocks import Blocks
from allotrope.build.calibration import calibration
from allotrope.build.options import BuildOptions
from allotrope.errors import NumericalError, UsageError
from allotrope.hw.detect import detect
from allotrope.models.lower import lower
from allotrope.models.model import Model, open_model
from allotrope.quant import columns, sensitivity, streamed
from allotrope.quant.calibrate import Narrower, Streams, effective, rounded_input
from allotrope.quant.finished import Finished
from allotrope.quant.formats import Format
from allotrope.quant.groups import groups
from allotrope.quant.policy import Policy, Wanted, policy
from allotrope.quant.seen import Seen
from allotrope.verify.drive import Driver
from allotrope.verify.original import oracle
from tests.narrow_kit import checkpoint
from tests.tiny import KINDS, tiny
from tests.verifying import VOCAB

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 16
LOUD: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
QUICK: dict[str, Any] = {"device": "cpu", "tune": "off", "threads": 1, "dtype": "fp32"}
BUNDLED = Path(__file__).parents[1] / "models"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    with settings.keeping_in(tmp_path / "cache"):
        yield


class Whole:
    """A tiny model's weights in memory, and its parts."""

    def __init__(self, model: Model) -> None:
        self.plan: Plan = lower(model.recipe, "fp32")
        self.blocks = Blocks(self.plan, detect("cpu"), LENGTH)
        self.source = streamed.Source(model, self.plan, self.blocks, "cpu", {})
        self.weights = self.source.weights(list(self.plan.calls))
        self.ids = torch.randint(3, model.recipe.vocab, (12, LENGTH), generator=torch.Generator().manual_seed(1))
        self.slots = streamed.weight_slots(self.plan)

    def hidden(self, weights: dict[str, torch.Tensor], chosen: Policy | None = None) -> torch.Tensor:
        """Behind the last block; activations rounded as the policy says."""
        [state] = self.source.embedded([self.ids])
        for name, calls in self.plan.blocks():
            if name.startswith("blocks."):
                tap = None if chosen is None else rounded_input(chosen)
                state = self.blocks.run(calls, weights, {"b:x": state}, "b:x", tap=tap)
        return state

    def narrowed(self, chosen: Policy, *, smooth: bool = True) -> tuple[dict[str, torch.Tensor], list[Finished]]:
        """All weights as they have become."""
        streams = Streams(self.plan, self.blocks, chosen, self.source.embedded(list(torch.split(self.ids, 3))))
        narrower, now, found = Narrower(self.plan, chosen, streams, smooth=smooth), dict(self.weights), []
        for name, calls in self.plan.blocks():
            if name.startswith("blocks."):
                made = narrower.block(calls, self.weights)
                now |= {k: v for k, v in effective(made, self.weights, self.slots).items() if v is not self.weights[k]}
                streams.advance(calls, self.weights, now)
                found.append(Finished.of(made))
        return now, found


@pytest.mark.parametrize("kind", ["gpt2", "opt-350m", "llama-grouped", "mistral", "qwen3"])
def test_blocks_compute_what_the_original_does(tmp_path: Path, kind: str) -> None:
    model = open_model(tiny(kind, tmp_path))
    whole = Whole(model)
    state = whole.hidden(whole.weights)
    head = [call for call in list(whole.plan.blocks())[-1][1] if call.op != "sample"]
    logits = whole.blocks.run(head, whole.weights, {"b:x": state}, "b:logits").view(*whole.ids.shape, -1)
    with torch.no_grad():
        exact = oracle(model, "fp32", detect("cpu"), resident=True).model(input_ids=whole.ids).logits
    assert torch.allclose(logits, exact, atol=2e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_folded_scales_change_nothing_but_the_rounding(tmp_path: Path, kind: str) -> None:
    """Without rounding, a balanced block is the wide block: so nothing is folded where something else reads it."""
    whole = Whole(open_model(tiny(kind, tmp_path)))
    chosen = replace(policy(whole.plan, Wanted(weights="int8", method="awq")), method="awq")
    now, done = whole.narrowed(chosen)
    for one in done:
        now |= {slot: values.clone() for slot, values in one.folded.items()}
        now |= {whole.slots[path]: one.balanced(path, whole.weights[whole.slots[path]]) for path in one.quantised}
    exact = whole.hidden(whole.weights)
    assert torch.allclose(whole.hidden(now), exact, atol=1e-4 * float(exact.abs().max()))


def test_where_scales_are_folded(tmp_path: Path) -> None:
    told = {}
    for kind in ("llama-grouped", "gpt2", "opt", "opt-350m", "opt-bare"):
        plan = lower(open_model(tiny(kind, tmp_path / kind)).recipe, "fp32")
        calls = dict(plan.blocks())["blocks.1"]
        told[kind] = [one.before.path.split(".", 2)[2] if one.before else one.why_not for one in groups(plan, calls)]
    assert told == {
        "llama-grouped": ["attn.norm", "attn.v", "mlp.norm", "mlp.up"],
        "gpt2": ["attn.norm", "attn.v", "mlp.norm", "no scale passes through gelu_tanh"],
        "opt": ["attn.norm", "attn.v", "mlp.norm", "mlp.up"],
        "opt-350m": ["its input comes from another block", "attn.v", "blocks.1.mlp.add reads the same input", "mlp.up"],
        "opt-bare": ["blocks.1.attn.norm has no weight", "attn.v", "blocks.1.mlp.norm has no weight", "mlp.up"],
    }


def loud(folder: Path) -> Model:
    """A llama in which one channel of a norm is fifty times as loud, and its readers hear it a fiftieth as well."""
    from safetensors.torch import load_file, save_file

    source = tiny("llama", folder, **LOUD)
    tensors = load_file(source / "model.safetensors")
    for layer in range(3):
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            tensors[f"model.layers.{layer}.{norm}.weight"][7] *= 50
            for reader in readers:
                tensors[f"model.layers.{layer}.{reader}.weight"][:, 7] /= 50
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return open_model(source)


def test_smoothing_answers_a_loud_channel(tmp_path: Path) -> None:
    found = {}
    for name, model in (("plain", open_model(tiny("llama", tmp_path / "a", **LOUD))), ("loud", loud(tmp_path / "b"))):
        whole = Whole(model)
        chosen = policy(whole.plan, Wanted(weights="int8", activations="int8"))
        exact = whole.hidden(whole.weights)
        for smooth in (False, True):
            now, _ = whole.narrowed(chosen, smooth=smooth)
            error = (whole.hidden(now, chosen) - exact).norm() / exact.norm()
            found[name, smooth] = float(error)
    assert found["loud", False] > 4 * found["plain", False]
    assert found["loud", True] < 0.2 * found["loud", False]
    assert found["loud", True] < 1.6 * found["plain", False]
    assert found["plain", True] <= found["plain", False] * 1.02


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods_beat_rounding_to_nearest(tmp_path: Path, method: str) -> None:
    whole = Whole(open_model(tiny("llama", tmp_path, **LOUD)))
    chosen = policy(whole.plan, Wanted(weights="int4"))
    exact, errors = whole.hidden(whole.weights), {}
    for way in ("nearest", method):
        now, _ = whole.narrowed(replace(chosen, method=way))
        errors[way] = float((whole.hidden(now) - exact).norm() / exact.norm())
    assert errors[method] < 0.95 * errors["nearest"]


def test_a_killed_calibration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny("llama", tmp_path / "ckpt", **LOUD)
    (tmp_path / "text").write_text("a b " * 400)
    asked = {"weights": "int4", "method": "gptq", **QUICK, "calibration": str(tmp_path / "text")}
    monkeypatch.setattr("allotrope.build.calibration._encoded", lambda model, text, where: [*range(3, 131)] * 8)
    exact = build(str(source), tmp_path / "exact", **asked).manifest.files
    whole, ran = Narrower.block, list[str]()

    def dying(self: Narrower, calls: Any, wide: Any) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(calls[0].path)
        return whole(self, calls, wide)

    monkeypatch.setattr(Narrower, "block", dying)
    with pytest.raises(KeyboardInterrupt):
        build(str(source), tmp_path / "engine", **asked)
    assert ran == ["blocks.0.attn.norm", "blocks.1.attn.norm"]
    ran[:] = ["", "blocks.0 and 1 were finished"][:1]
    again = build(str(source), tmp_path / "engine", **asked).manifest.files
    assert ran[1:] == ["blocks.2.attn.norm"]
    weights = [name for name in exact if name.startswith("weights")]
    assert weights and all(again[name] == exact[name] for name in weights)
    assert not any((tmp_path / "cache" / "calibration").iterdir())


def test_a_bound_on_kl_holds_on_other_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "_RANKED", 256)
    model, bound = open_model(BUNDLED / "tinygpt2"), 0.03
    plan = lower(model.recipe, "fp32")
    chosen = policy(plan, Wanted(weights="int4", method="nearest"))
    source = streamed.Source(model, plan, Blocks(plan, detect("cpu"), 128), "cpu", chosen.narrow)
    given = calibration(model, plan, BuildOptions(calibration_tokens=2048), "cpu")
    given = replace(given, ids=given.ids.reshape(-1, 128))
    streamed.streamed(source, chosen, given, smooth=False)
    kept, told = sensitivity.widened(source, chosen, given, bound)
    assert 0 < len(told["wide"]) < len(chosen.narrow) and told["high"] <= bound
    assert told["wide"] == sorted(told["wide"], key=lambda path: -told["parts"][path])
    assert all(kept.formats[path] is None and "--max-kl" in kept.reasons[path] for path in told["wide"])
    text = (BUNDLED / "data" / "tinygpt2_heldout.txt").read_text(encoding="utf-8")
    ids = tokenizers.load(BUNDLED / "tinygpt2", model.recipe.vocab).encode(text[:20_000], special=False)
    other = torch.tensor(ids[:2048]).view(-1, 128)

    def cost(narrow: frozenset[str]) -> float:
        found = sensitivity.ends(source, chosen, given, other, narrow)
        exact = sensitivity.ends(source, chosen, given, other, frozenset())
        return sum(float(sensitivity.kl(a, b)) for a, b in zip(exact, found, strict=True)) / len(exact)

    assert cost(frozenset(kept.narrow)) <= bound < cost(frozenset(chosen.narrow))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_narrow_head_has_its_part_of_the_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Tied to the embedding or not, what is measured for it is what its engine costs."""
    source, asked = checkpoint(kind, tmp_path / "ckpt"), {"wide": (), "narrow": ("head=int4",)}
    whole = Whole(open_model(source))
    engines = [build(str(source), tmp_path / name, keep=keep, **QUICK).path for name, keep in asked.items()]
    driven = [Driver(open_engine(path), detect("cpu"), sequences=12, longest=LENGTH, tokens=192) for path in engines]
    cost = float(sensitivity.kl(*(driver.walk(whole.ids.tolist()) for driver in driven)))
    texts, chosen = streamed.Calibration(whole.ids, {}, tmp_path), policy(whole.plan, Wanted(keep=("head=int4",)))
    streamed.streamed(whole.source, chosen, texts, smooth=False)
    monkeypatch.setattr(sensitivity, "_RANKED", 6 * LENGTH)
    found = sensitivity.ends(whole.source, chosen, texts, whole.ids, frozenset({"head"}))
    exact = sensitivity.ends(whole.source, chosen, texts, whole.ids, frozenset())
    assert float(sensitivity.kl(torch.stack(exact), torch.stack(found))) == pytest.approx(cost, rel=1e-3)
    kept, told = sensitivity.widened(whole.source, chosen, texts, cost / 2)
    assert told["parts"] == {"head": pytest.approx(cost, rel=0.3)} and told["wide"] == ["head"] and not kept.narrow


@pytest.mark.parametrize(
    ("given", "words"),
    (
        ({"calibration": "none.txt"}, "cannot be read"),
        ({"text": b""}, "calibration text is empty"),
        ({"text": b"\xff\xfe"}, "not UTF-8 at byte 0"),
        ({"text": b"hi"}, "less than one sequence of"),
        ({"calibration_tokens": 5}, "--calibration-tokens is 5, less than one sequence of"),
        ({"max_kl": -1.0}, "max_kl is -1.0"),
        ({"method": "nearest", "calibration_tokens": 512}, "nothing to be calibrated"),
        ({"weights": "fp8", "method": "awq"}, "--method awq is for integers"),
        ({"weights": "int8", "activations": "int8", "method": "awq"}, "with activations in eight bits"),
    ),
)
def test_what_cannot_be_calibrated_is_said_in_words(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    asked = {"weights": "int4", **QUICK, **given}
    if "text" in asked:
        (tmp_path / "text").write_bytes(asked.pop("text"))
        asked["calibration"] = str(tmp_path / "text")
    with pytest.raises(UsageError, match=words):
        build(str(BUNDLED / "tinygpt2"), tmp_path / "engine", **asked)


def test_a_model_without_a_tokenizer_cannot_read_the_text(tmp_path: Path) -> None:
    source, asked = tiny("llama", tmp_path / "ckpt", **LOUD), {"weights": "int4", **QUICK}
    with pytest.raises(UsageError, match="tokenizer cannot read the calibration text"):
        build(str(source), tmp_path / "engine", method="gptq", **asked)
    built = build(str(source), tmp_path / "engine", **asked)
    assert built.manifest.evidence["quantisation"]["method"] == "nearest"


@pytest.mark.parametrize(("without", "sees"), (((), True), (("smooth",), False)))
def test_what_nothing_asks_for_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...], sees: bool
) -> None:
    """Rounded to nearest and not smoothed, eight-bit activations need no calibration; smoothing needs it."""
    counted, add = list[str](), Seen.add

    def noted(self: Seen, wide: torch.Tensor, narrow: torch.Tensor) -> None:
        counted.append(self.gram.path)
        add(self, wide, narrow)

    monkeypatch.setattr(Seen, "add", noted)
    asked = {**QUICK, "weights": "int8", "activations": "int8", "method": "nearest", "without": without}
    built = build(str(BUNDLED / "tinygpt2"), tmp_path / "engine", **asked, calibration_tokens=512 if sees else None)
    assert bool(counted) == sees
    assert ("calibration" in built.manifest.evidence["quantisation"]) == sees
    assert {call.params.get("activations") for call in built.manifest.plan.calls if call.op == "linear_codes"} == {
        "int8"
    }


def test_nan_on_the_way_is_refused() -> None:
    seen, rows = Seen(4, "blocks.0.attn.q", "cpu"), torch.ones(3, 4)
    with pytest.raises(NumericalError, match="its inputs hold NaN or infinity"):
        seen.add(rows * torch.nan, rows)
    with pytest.raises(NumericalError, match="its inputs hold NaN or infinity"):
        seen.add(rows, rows * torch.inf)


def test_the_aim_answers_for_what_the_inputs_have_lost() -> None:
    random = torch.Generator().manual_seed(0)
    wide = torch.randn(500, 8, generator=random)
    narrow = wide @ torch.randn(8, 8, generator=random) * 0.3 + wide + 0.2 * torch.randn(500, 8, generator=random)
    weight, seen = torch.randn(5, 8, generator=random), Seen(8, "x", "cpu")
    seen.add(wide, narrow)
    best = torch.linalg.lstsq(narrow.double(), (wide @ weight.T).double()).solution.T.float()

    def error(found: torch.Tensor) -> float:
        return float((narrow @ found.T - wide @ weight.T).norm())

    assert error(best) <= error(seen.aimed(weight, 1.0)) < 1.05 * error(best) < 0.5 * error(weight)
    assert torch.equal(seen.aimed(weight, 0.0), weight)


def test_weights_are_calibrated_alike_whatever_the_cache(tmp_path: Path) -> None:
    """What a narrow cache costs is not the weights' to answer for."""
    asked: dict[str, Any] = {"weights": "int8", "method": "gptq", "calibration_tokens": 1024, **QUICK}
    found = []
    for name, given in (("wide", {}), ("narrow", {"kv": "int8"})):
        built = build(str(BUNDLED / "tinygal-draft"), tmp_path / name, **asked, **given)
        found.append([error["noise"] for error in built.manifest.evidence["quantisation"]["weights"]])
    assert found[0] == found[1]


def test_a_layer_in_16_bits_has_its_row_though_it_was_scaled(tmp_path: Path) -> None:
    """Beside codes it shares their input, whose scales are folded into it."""
    source, asked = checkpoint("llama", tmp_path / "ckpt"), {"weights": "int4", "method": "awq", "keep": "*.up=fp16"}
    (source / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
    found = build(str(source), tmp_path / "engine", calibration_tokens=512, **asked, **QUICK)
    told = found.manifest.evidence["quantisation"]
    assert any("up" in group["group"] and "exponent" in group for group in told["calibration"]["groups"])
    assert sum(row["format"] == "fp16" for row in told["weights"]) == 3


@pytest.mark.parametrize("interrupted", [False, True])
def test_recordings_end_with_the_quantisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """On a GPU each holds memory for as long as it is kept, and so nobody else has it."""
    whole = Whole(open_model(tiny("llama", tmp_path / "ckpt")))
    monkeypatch.setattr(columns, "_Recording", lambda *given: object())

    def block(*given: Any) -> None:
        cpu = torch.device("cpu")
        columns._recording(torch.Size((2, 2)), torch.float64, torch.float32, False, Format("int8"), cpu)
        assert columns._recording.cache_info().currsize == 1
        if interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(streamed, "_block", block)
    texts, chosen = streamed.Calibration(whole.ids, {}, tmp_path), policy(whole.plan, Wanted("int8", method="gptq"))
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        streamed.streamed(whole.source, chosen, texts, smooth=False)
    assert columns._recording.cache_info().currsize == 0
