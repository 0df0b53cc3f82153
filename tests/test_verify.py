"""`verify` itself: what it asks, refuses, writes and prints. Whether it finds bugs is tested with planted ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from allotrope.build import build
from allotrope.cli import main
from allotrope.errors import CheckpointError, UsageError
from allotrope.models.model import open_model
from allotrope.ops import check
from allotrope.ops.check import ErrorStats
from allotrope.verify import text
from allotrope.verify.distributions import compare_logits, compare_tokens
from allotrope.verify.oracle import Oracle, Probe
from allotrope.verify.original import loaders, oracle
from allotrope.verify.places import rotated
from allotrope.verify.prompts import LONGEST, Prompt, default_prompts, read_prompts
from allotrope.verify.records import BlockRow, Check, Layers, Logits, OpRow, Preflight, Tokens
from allotrope.verify.session import Question, verify
from allotrope.verify.verdict import CLOSE, DEGRADED, IDENTICAL, WITHIN, Findings, enough
from tests.schemas import fits, fits_kept
from tests.tiny import rewrite_tensors
from tests.verifying import CPU, Forge, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["verify", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# The oracle


def test_the_oracle_in_fp64_is_fp64_throughout(assets: Path) -> None:
    """An independent float64 computation agrees to the last digits: no softmax, norm or angle was in fp32."""
    folder = assets / "stories260K"
    recorded = json.loads((folder / "derived_reference_float64.json").read_text())
    truth = oracle(open_model(folder), "fp64", CPU)
    logits = truth.walk([recorded["prompt_ids"], [1]], {})["logits"]
    for row, key in ((12, "logits_last_pos_prompt"), (13, "logits_after_BOS")):
        assert check.compare(logits[row], torch.tensor(recorded[key], dtype=torch.float64)).max_abs < 1e-12


def test_the_oracle_wants_every_weight_and_no_other(forge: Forge) -> None:
    import transformers

    model = open_model(checkpoint("llama", forge.new("llama")))
    config = transformers.LlamaConfig(**model.family.oracle.config(model.config))
    found = loaders(model)

    def made(given: dict[str, Any]) -> Oracle:
        return Oracle(transformers.LlamaForCausalLM, config, given, "fp32", "cpu", layers=3)

    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=f"no weight for the original's {name}"):
        made({key: loader for key, loader in found.items() if key != name})
    with pytest.raises(CheckpointError, match=r"no place for the checkpoint's model\.layers\.9\.x"):
        made({**found, "model.layers.9.x": found[name]})
    with pytest.raises(CheckpointError, match=r"shape \[3\] where the original has \[80, 48\]"):
        made({**found, name: lambda: torch.zeros(3)})


def test_values_are_replaced_and_rounded_where_they_are_probed(forge: Forge) -> None:
    truth = oracle(open_model(checkpoint("gpt2", forge.new("gpt2"))), "fp64", CPU)
    prompts, probes = [[1, 2, 3], [4]], {"h": Probe("transformer.h.0", "out"), "n": Probe("transformer.h.1.ln_1", "in")}
    plain = truth.walk(prompts, probes)
    assert torch.equal(plain["h"], plain["n"]) and len(plain["h"]) == 4
    stepped = truth.walk(prompts, probes, round_to=torch.bfloat16)
    assert torch.equal(stepped["h"], plain["h"]), "what is recorded is not rounded yet"
    assert torch.equal(stepped["n"], plain["h"].bfloat16().double())
    given = torch.randn(4, 48, dtype=torch.float64)
    replaced = truth.walk(prompts, {"h": probes["h"], "n": probes["n"]}, given={"h": given})
    assert torch.equal(replaced["n"], given) and torch.equal(replaced["h"], plain["h"])
    assert not torch.equal(replaced["logits"], plain["logits"])


def test_rotation_is_that_of_halves() -> None:
    x = torch.randn(5, 12, dtype=torch.float64)
    angles = torch.arange(5.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.5], dtype=torch.float64)
    doubled = torch.cat((angles, angles), -1)
    found = rotated(x, torch.stack((doubled.cos(), doubled.sin())), heads=2).reshape(5, 2, 6)
    pairs = torch.complex(x.reshape(5, 2, 6)[..., :2].contiguous(), x.reshape(5, 2, 6)[..., 2:4].contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat((turned.real, turned.imag, x.reshape(5, 2, 6)[..., 4:]), -1)
    assert check.within(check.compare(found, expected), check.compare(expected, expected), "fp64") is None


# Prompts


def test_default_prompts_reach_from_one_token_to_the_limit() -> None:
    prompts = default_prompts(None, 50, 1000, seed=3, new=8)
    assert [len(prompt.ids) for prompt in prompts] == [1, 13, 60, LONGEST]
    assert prompts == default_prompts(None, 50, 1000, seed=3, new=8) != default_prompts(None, 50, 1000, 4, 8)
    assert all(0 <= token < 50 for prompt in prompts for token in prompt.ids)
    short = default_prompts(None, 50, 20, seed=3, new=8)
    assert [(len(prompt.ids), prompt.new) for prompt in short] == [(1, 8), (13, 7), (20, 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    (
        ("[1, 2, 99]", "token ids must be 0 to 49"),
        ("\n\n", "no prompts in it"),
        ("text without a tokenizer", "line 1: a text, but the engine has no tokenizer"),
        ("[1]\n[1, 2, 3, 4, 5]", "line 2: 5 tokens, 4 can be compared"),
        ("[1, 2, 3, 4]\n[4, 3, 2, 1]", "every prompt has 4 tokens, the most there can be, so nothing can follow"),
    ),
)
def test_prompts_that_cannot_be_asked(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_prompts(tmp_path / "p", None, 50, 4, 8)


def test_prompts_of_a_file(forge: Forge, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("hello\n\n[1, 2, 3]\n")
    result = verify(forge.built("llama"), Question(prompts=tmp_path / "p", new_tokens=4))
    assert [prompt.name for prompt in result.prompts] == ["line 1", "line 3"]
    assert result.prompts[1].ids == (1, 2, 3) and result.findings.verdict == IDENTICAL
    with pytest.raises(UsageError, match=r"absent: prompts cannot be read: No such file or directory$"):
        verify(forge.built("llama"), Question(prompts=tmp_path / "absent"))


# Distributions


def test_logits_figures_against_plain_formulas() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(7, 11, generator=random, dtype=torch.float64)
    engine = truth + 0.1 * torch.randn(7, 11, generator=random, dtype=torch.float64)
    sequences = [[1, 2, 3, 4], [5, 6, 7]]
    found = compare_logits(engine, truth, truth, sequences)
    p, q = torch.softmax(truth, -1), torch.softmax(engine, -1)
    kl = (p * (p / q).log()).sum(-1)
    assert found.mean_kl == pytest.approx(float(kl.mean())) and found.max_kl == pytest.approx(float(kl.max()))
    assert found.same_top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.max_logprob_change == pytest.approx(float((p / q).log().abs().max()))
    rows, following = [0, 1, 2, 4, 5], [2, 3, 4, 6, 7]
    assert found.perplexity == pytest.approx(float((-q[rows, following].log()).mean().exp()))
    assert found.original_perplexity == pytest.approx(float((-p[rows, following].log()).mean().exp()))
    assert found.floor["mean_kl"] == 0 and found.positions == 7


def test_a_token_is_excused_only_by_the_noise_at_its_place() -> None:
    truth = torch.tensor([[3.0, 2.9, 0.0], [3.0, 1.0, 0.0]], dtype=torch.float64)
    quiet, loud = truth + 1e-9, truth + torch.tensor([0.0, 0.06, 0.0])
    prompt = Prompt("p", (0, 0, 0), 2)
    judged = compare_tokens([prompt], [[1, 0]], [truth], [quiet], "fp32")
    assert not judged.ok and judged.equal == 1 and judged.total == 2 and judged.exact_prompts == 0
    [divergence] = judged.divergences
    assert (divergence.position, divergence.engine, divergence.original) == (3, 1, 0)
    assert divergence.margin == pytest.approx(0.1)
    assert compare_tokens([prompt], [[1, 0]], [truth], [loud], "fp32").ok
    assert not compare_tokens([prompt], [[0, 1]], [truth], [loud], "fp32").ok
    assert compare_tokens([prompt], [[0, 0]], [truth], [quiet], "fp32").exact_prompts == 1


# The verdict's words

FINE = ErrorStats(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def layers(complaint: str | None) -> Layers:
    from allotrope.verify.layers import first_wrong

    rows = (BlockRow("embed", FINE, None, FINE, FINE, complaint),)
    return Layers(rows, (), first_wrong(rows, ()))


def test_a_wrong_check_is_told_whole_and_fits() -> None:
    detail = "the weights differ from the original's in 12 of 2048 values, first at [2, 48], and this goes on"
    lines = text.preflight_lines(Preflight((Check("weights", False, detail), Check("digests", True, "x" * 100))))
    assert max(map(len, lines)) <= 80 and len(lines) == 3
    assert " ".join(" ".join(lines[:2]).split()) == f"WRONG weights: {detail}"
    op = OpRow("blocks.0.attn.q", "linear", "blocks.0", FINE, FINE, None)
    assert len(text.layers_line(Layers(layers(None).rows * 100, (op,) * 1000))) <= 80


def logits(kl: float = 0.0, top1: float = 1.0, ratio: float = 1.0) -> Logits:
    return Logits(10, kl, kl, top1, 0.0, 10.0 * ratio, 10.0, {}, {})


@pytest.mark.parametrize(
    ("findings", "word"),
    (
        (Findings("fp32", Preflight(()), layers(None), logits(), Tokens(1, 1, 1, 1)), IDENTICAL),
        (Findings("bf16", Preflight(()), layers(None), logits(kl=1.0), Tokens(1, 1, 1, 1)), WITHIN),
        (Findings("fp16", None, layers("too far"), logits(0.01, 0.95, 1.02), Tokens(1, 1, 1, 1)), CLOSE),
        (Findings("fp32", None, layers("too far"), logits(kl=0.011), Tokens(1, 1, 1, 1)), DEGRADED),
        (Findings("fp32", None, layers("too far"), logits(top1=0.94), Tokens(1, 1, 1, 1)), DEGRADED),
        (Findings("fp32", None, layers("too far"), logits(ratio=1.03), Tokens(1, 1, 1, 1)), DEGRADED),
        (Findings("fp32", None, layers("too far"), None, Tokens(1, 1, 1, 1)), DEGRADED),
        (Findings("fp32", None, layers("too far"), logits(kl=float("nan")), None), DEGRADED),
        (Findings("fp32", Preflight(()), None, logits(), Tokens(1, 1, 1, 1)), None),
        (Findings("fp32", None, layers(None), logits(), Tokens(1, 1, 1, 1)), None),
    ),
)
def test_the_words(findings: Findings, word: str | None) -> None:
    assert findings.verdict == word
    json.dumps(findings.to_json())


def test_a_word_is_enough_for_itself_and_for_less() -> None:
    order = (DEGRADED, CLOSE, WITHIN, IDENTICAL)
    for i, word in enumerate(order):
        assert [enough(word, required) for required in order] == [j <= i for j in range(4)]


# The command


def test_json_and_what_is_kept(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    path = forge.built("llama")
    code, out, err = command(capsys, str(path), "--json", "--seed", "5", "--new-tokens", "4")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    fits("verify", found)
    assert fits_kept("verify", path) == found
    kept = json.loads((path / "verify.json").read_text())
    assert kept["command"] == f"allotrope verify {path} --json --seed 5 --new-tokens 4"
    assert kept["engine_digest"] == json.loads((path / "engine.json").read_text())["digest"]
    assert found["verdict"] == found["implementation"] == IDENTICAL and found["cost"] is None and found["passed"]
    assert set(found["levels"]) == {"preflight", "layers", "logits", "tokens"}
    assert found["located"] is None and found["first_divergence"] is None
    row = found["levels"]["layers"]["rows"][1]
    assert row["block"] == "blocks.0" and {"total", "inherited", "injected", "floor"} <= set(row)
    assert {"max_abs", "mean_abs", "median_abs", "rms_rel_rms"} <= set(row["total"])
    assert kept["environment"]["seed"] == 5 and kept["environment"]["versions"]["transformers"]
    assert all(len(line) <= 80 for line in err.splitlines() if "Writing" not in line)
    assert err.startswith("Verdict: identical (fp32)")
    assert not list(path.glob(".verify*"))


def test_a_verdict_that_cannot_be_kept_is_told(
    forge: Forge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("allotrope.artifact.results.write", refused)
    path = forge.built("llama")
    code, out, err = command(capsys, str(path), "--json", "--new-tokens", "2")
    assert code == 0 and json.loads(out.splitlines()[-1])["verdict"] == IDENTICAL
    assert f"(not kept: {path} cannot be written)" in " ".join(err.split())


def test_levels_can_be_left_out(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(forge.built("llama"))
    code, out, _ = command(capsys, path, "--level", "preflight", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["verdict"] is None and found["levels"]["layers"] is None
    code, out, _ = command(capsys, path, "--level", "layers,logits,tokens", "--new-tokens", "2", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["verdict"] is None, "an epsilon may be wrong by less than any figure shows"
    assert all(row["ok"] for row in found["levels"]["layers"]["rows"]) and found["levels"]["tokens"]["ok"]
    for arguments, message in (
        (("--level", "layer"), "no level 'layer'; levels are preflight, layers, logits, tokens"),
        (("--level", "logits", "--require", "close"), "--require needs the levels preflight, layers, tokens"),
        (("--require", "good"), "choose from"),
        (("--new-tokens", "0"), "0 new tokens; ask for 1 to 4096"),
        (("--threads", "0"), "--threads is 0; give a number from 1 to 1024"),
    ):
        code, _, err = command(capsys, path, *arguments)
        assert code == 2 and message in err, err


def test_sixteen_bits_can_never_be_identical(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(forge.built("llama", "bf16"))
    assert command(capsys, path, "--new-tokens", "4")[0] == 0
    code, out, _ = command(capsys, path, "--new-tokens", "4", "--require", "identical")
    assert code == 3 and "Required: identical. The engine does not pass." in out


def test_another_original_is_told_apart(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(forge.built("llama"))
    other = checkpoint("llama", forge.new("llama"), seed=9)
    code, out, _ = command(capsys, path, "--original", str(other))
    assert code == 3 and "Verdict: degraded" in out and "differs from the original" in out
    assert command(capsys, path, "--original", path)[0] == 0
    smaller = checkpoint("llama", forge.new("llama"), num_hidden_layers=2)
    code, _, err = command(capsys, path, "--original", str(smaller))
    assert code == 2 and "is another model: 2 blocks and 263 tokens, the engine has 3 and 263" in err


def test_a_changed_or_missing_original_is_refused(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = checkpoint("gpt2", forge.new("gpt2")), forge.new("engine")
    build(str(source), path, device="cpu", dtype="fp32", tune="off")
    rewrite_tensors(source, lambda tensors: {**tensors, "transformer.ln_f.bias": torch.ones(48)})
    code, _, err = command(capsys, str(path))
    assert code == 2 and "changed since the engine was built" in err and "--original" in err
    source.rename(source.with_name("moved"))
    code, _, err = command(capsys, str(path))
    assert code == 2 and "the engine's original cannot be read" in err and "--original" in err


def test_a_flipped_bit_is_found(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    path = forge.planted(forge.built("gpt2"))
    [weights] = (path / "weights").iterdir()
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    code, out, _ = command(capsys, str(path), "--level", "preflight", "--json")
    assert code == 3
    checks = {check["name"]: check for check in json.loads(out.splitlines()[-1])["levels"]["preflight"]["checks"]}
    assert checks["digests"]["ok"] is False and "does not match its digest" in checks["digests"]["detail"]
    assert checks["weights"]["ok"] is False and "in 1 of" in checks["weights"]["detail"]


@pytest.mark.filterwarnings("ignore:.*holds NaN")
def test_nan_weights_are_named(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = checkpoint("llama", forge.new("llama")), forge.new("engine")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    build(str(source), path, device="cpu", dtype="fp32", tune="off", allow_nan=True)
    code, out, _ = command(capsys, str(path), "--json", "--new-tokens", "4")
    found = json.loads(out.splitlines()[-1])
    assert code == 3 and found["verdict"] == DEGRADED
    assert found["located"]["path"] == "blocks.1.mlp.up"
    assert "blocks.1.mlp.up.weight holds NaN or infinity, first at [3, 4]" in found["located"]["detail"]


def test_a_checkpoint_is_built_first(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint("gpt2", forge.new("gpt2"), n_layer=1)
    code, out, _ = command(capsys, str(source), "--device", "cpu", "--new-tokens", "2", "--tune", "off")
    assert code == 0 and out.startswith("Verdict: identical (fp32)")
    code, _, err = command(capsys, str(forge.built("llama")), "--dtype", "bf16")
    assert code == 2 and "dtype is an option of building" in err


def test_other_generation_defaults_are_another_question(forge: Forge) -> None:
    engine = forge.built("llama")
    changed = forge.described(engine, generation={"bos_token_id": 7, "eos_token_ids": [2], "pad_token_id": None})
    result = verify(changed, Question(levels=("preflight",)))
    assert result.findings.verdict == DEGRADED and result.findings.preflight is not None
    [found] = [check for check in result.findings.preflight.checks if check.ok is False]
    assert found.name == "generation" and "bos_token_id is 7, the original's is 1" in found.detail


def test_random_checkpoints_have_no_tokenizer_to_compare(forge: Forge) -> None:
    result = verify(forge.built("opt"), Question(levels=("preflight",)))
    assert result.findings.preflight is not None
    found = {check.name: check.ok for check in result.findings.preflight.checks}
    assert found["token ids"] is None and found["tokenizer"] is True and found["weights"] is True
