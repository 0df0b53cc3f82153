"""Rotary positions and log-n against transformers and against the publisher's recorded tables; the cache write."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from allotrope.hw.device import Device
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.rotary import turns
from allotrope.ops.rotary.reference import growth

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Device("cpu", "test", "x86_64", 2, 1 << 34)
HEADS, HEAD_DIM = 4, 32
TACTIC = registry.tactic("rotary", "torch")

LLAMA3 = {"factor": 8.0, "low_freq": 1.0, "high_freq": 4.0, "original_len": 256}
SCALINGS: dict[str, tuple[dict[str, Scalar], dict[str, object]]] = {
    "none": ({}, {"rope_type": "default"}),
    "linear": ({"scaling": "linear", "factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
    "llama3": (
        {"scaling": "llama3", **LLAMA3},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
    "dynamic": (
        {"scaling": "dynamic", "factor": 3.0, "original_len": 64},
        {"rope_type": "dynamic", "factor": 3.0},
    ),
}


def run(
    x: torch.Tensor, positions: torch.Tensor, prompt_lens: torch.Tensor, head_dim: int = HEAD_DIM, **params: Scalar
) -> torch.Tensor:
    given = {"heads": x.shape[1] // head_dim, "head_dim": head_dim, "dim": head_dim, "base": 10000.0, **params}
    out = torch.full_like(x, torch.nan)
    ins = {"x": x, "positions": positions, "prompt_lens": prompt_lens}
    TACTIC.run({"out": out}, ins, registry.contract("rotary").complete(given), None)
    return out


def transformers_rotation(x: torch.Tensor, positions: torch.Tensor, rope: dict[str, object]) -> torch.Tensor:
    """The queries' rotation as transformers' Llama computes it, for one sequence that begins at position 0."""
    config = LlamaConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )
    cos, sin = LlamaRotaryEmbedding(config)(x, positions[None])
    heads = x.view(len(x), HEADS, HEAD_DIM).transpose(0, 1)[None]
    turned, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
    return turned[0].transpose(0, 1).reshape(len(x), -1)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("length", [1, 64, 65, 300])
def test_it_turns_as_transformers_does(scaling: str, length: int) -> None:
    ours, theirs = SCALINGS[scaling]
    x = torch.randn(length, HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(length))
    positions = torch.arange(length)
    turned = run(x, positions, torch.full((length,), length), **ours)
    expected = transformers_rotation(x, positions, theirs)
    if scaling == "dynamic":  # its frequencies may differ in the last bit, times the position
        assert (turned - expected).abs().max() < 2e-7 * length * x.abs().max()
    else:
        assert torch.equal(turned, expected)


def test_dynamic_scaling_follows_the_prompt_and_then_the_position() -> None:
    ours, theirs = SCALINGS["dynamic"]
    x = torch.randn(200, HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(0))
    positions, prompt = torch.arange(200), torch.full((200,), 100)
    turned = run(x, positions, prompt, **ours)
    for row in (0, 63, 99, 100, 150, 199):
        length = max(100, row + 1)
        whole = transformers_rotation(x[:length], positions[:length], theirs)
        assert (turned[row] - whole[row]).abs().max() < 2e-5 * x.abs().max()
    unlike = transformers_rotation(x[:150], positions[:150], theirs)[99]
    assert (turned[99] - unlike).abs().max() > 1e-2  # the vectors can tell a wrong length


def test_partial_rotation_leaves_the_rest_of_each_head() -> None:
    x = torch.randn(9, 3 * 20, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([0, 1, 2, 3, 50, 51, 7, 1000, 4])
    turned = run(x, positions, positions + 1, head_dim=20, dim=8).view(9, 3, 20)
    assert torch.equal(turned[..., 8:], x.view(9, 3, 20)[..., 8:])
    first, second = x.view(9, 3, 20)[..., :4].double(), x.view(9, 3, 20)[..., 4:8].double()
    for pair in range(4):
        angle = positions[:, None].double() * 10000.0 ** (-2 * pair / 8)
        expected = first[..., pair] * angle.cos() - second[..., pair] * angle.sin()
        assert (turned[..., pair] - expected).abs().max() < 1e-4


def test_qwen_alpha_is_the_publishers_for_every_length(assets: Path) -> None:
    vectors = np.load(assets / "qwen-long" / "vectors.npz")
    lengths = torch.arange(1, 1025)
    params: dict[str, Scalar] = {"scaling": "qwen_ntk", "original_len": 64}
    assert growth(lengths - 1, lengths, params).tolist() == vectors["alpha_for_length"].tolist()
    edges = torch.from_numpy(vectors["edge_lengths"]).long()
    assert growth(edges, edges, params).tolist() == vectors["edge_alpha"].tolist()
    # fixed by the prompt however far decoding goes
    assert growth(torch.arange(1000), torch.full((1000,), 96), params).unique().tolist() == [3.0]


@pytest.mark.parametrize("length", [2048, 8192, 32768])
def test_qwen_alpha_is_exact_at_large_multiples(length: int) -> None:
    lengths = torch.tensor([length * n + step for n in (1, 2, 4, 8, 16) for step in (0, 1)])
    expected = [2 * 2 ** math.ceil(math.log2(-(-n // length))) - 1 for n in lengths.tolist()]
    assert growth(lengths, lengths, {"scaling": "qwen_ntk", "original_len": length}).tolist() == expected


def test_qwen_scaling_changes_the_base_for_all_positions() -> None:
    x = torch.randn(50, HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(50)
    for prompt, alpha in ((64, 1), (65, 3), (128, 3), (129, 7), (257, 15)):
        turned = run(x, positions, torch.full((50,), prompt), scaling="qwen_ntk", original_len=64)
        same = run(x, positions, positions + 1, base=10000.0 * alpha ** (HEAD_DIM / (HEAD_DIM - 2)))
        assert (turned - same).abs().max() < 2e-5, prompt


def test_logn_is_the_publishers(assets: Path) -> None:
    vectors = np.load(assets / "qwen-long" / "vectors.npz")
    x, out = torch.ones(1024, 8), torch.empty(1024, 8)
    tactic = registry.tactic("logn", "torch")
    tactic.run({"out": out}, {"x": x, "positions": torch.arange(1024)}, {"length": 64}, None)
    expected = torch.from_numpy(vectors["logn_for_position"])[:, None].expand_as(out)
    assert (out - expected).abs().max() < 3e-7
    assert torch.equal(out[:64], x[:64])
    assert (out[64:] > 1).all()


PROBLEMS = [
    *(
        Problem(
            "rotary",
            {"rows": 37, "width": HEADS * HEAD_DIM},
            {"heads": HEADS, "head_dim": HEAD_DIM, "dim": HEAD_DIM, "base": 10000.0, **params},
            "fp32",
        )
        for params in (
            *(ours for ours, _ in SCALINGS.values()),
            {"scaling": "qwen_ntk", "original_len": 64},
            {"dim": 8},
        )
    ),
    Problem("logn", {"rows": 37, "width": 40}, {"length": 64}, "fp32"),
    Problem("kv_write", {"rows": 37, "kv_width": 24, "cache_width": 24, "pages": 9, "page_size": 7}, {}, "fp32"),
]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.op}-{problem.params.get('scaling', '')}")
def test_tactics_pass_the_numerics_policy_row_by_row(problem: Problem, dtype: str) -> None:
    problem = dataclasses.replace(problem, dtype=dtype)
    for tactic in registry.tactics(problem.op):
        partial = problem.params.get("dim") != problem.params.get("head_dim")
        if tactic.name == "torch_matrices" and partial:
            assert "some are not turned" in str(tactic.why_not(problem, CPU))
            continue
        if tactic.name == "native" and dtype != "fp32":
            assert "computes in fp32" in str(tactic.why_not(problem, CPU))
            continue
        assert check.check(tactic, problem, CPU, seed=1).reason is None
        assert (tactic.row_class(problem, CPU) is None) == (tactic.name == "torch_matrices")
        if tactic.row_class(problem, CPU):
            assert check.check_rows(tactic, problem, CPU, seed=2) is None


def test_the_angles_are_computed_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first call of a step derives, the next ones take from the memo; another step derives it anew."""
    contract = registry.contract("rotary")
    ins = check.rounded(contract, PROBLEMS[0], contract.make_inputs(PROBLEMS[0], 0))
    computed = []
    monkeypatch.setattr(turns, "angles", lambda *args, angles=turns.angles: computed.append(1) or angles(*args))
    params = contract.complete(PROBLEMS[0].params)
    for name in ("torch_tables", "torch_matrices"):
        tactic, memo, outs = registry.tactic("rotary", name), dict[Any, Any](), []
        for given in ({**ins, "memo": memo}, {**ins, "memo": memo}, {**ins, "memo": {}}):
            outs.append(torch.empty_like(ins["x"]))
            tactic.run({"out": outs[-1]}, given, params, None)
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
        assert len(computed) == 2 and len(memo) == 1
        computed.clear()


def test_a_wrong_base_or_pairing_is_refused() -> None:
    problem = PROBLEMS[0]

    def wrong_base(out, ins, params, workspace):  # type: ignore[no-untyped-def]
        TACTIC.run(out, ins, {**params, "base": 10010.0}, workspace)

    def interleaved(out, ins, params, workspace):  # type: ignore[no-untyped-def]
        x = ins["x"].view(-1, HEADS, HEAD_DIM // 2, 2).transpose(2, 3).reshape(ins["x"].shape)
        TACTIC.run(out, {**ins, "x": x}, params, workspace)

    for planted in (wrong_base, interleaved):
        result = check.check(dataclasses.replace(TACTIC, run=planted), problem, CPU)  # type: ignore[type-var]
        assert "exceeds" in str(result.reason)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"scaling": "yarn"}, "'yarn' is none of none, linear"),
        ({"dim": 7}, "7 rotated channels are not an even part of a head of 32"),
        ({"dim": 34}, "34 rotated channels"),
        ({"heads": 3}, "3 heads of 32 channels do not make a row of 128"),
        ({"scaling": "dynamic"}, "needs the training length"),
        ({"scaling": "qwen_ntk", "original_len": 64, "dim": 2}, "undefined for 2 rotated channels"),
    ],
)
def test_it_says_why_not(params: dict[str, Scalar], words: str) -> None:
    problem = dataclasses.replace(PROBLEMS[0], params={**PROBLEMS[0].params, **params})
    assert words in str(TACTIC.why_not(problem, CPU))


def test_kv_write_touches_its_slots_only() -> None:
    ins = registry.contract("kv_write").make_inputs(PROBLEMS[-1], seed=5)
    before = {name: ins[name].clone() for name in ("k_cache", "v_cache")}
    registry.tactic("kv_write", "torch").run({name: ins[name] for name in before}, ins, {}, None)
    for cache, rows in (("k_cache", "k"), ("v_cache", "v")):
        flat, old = ins[cache].view(-1, 24), before[cache].view(-1, 24)
        assert torch.equal(flat[ins["slots"]], ins[rows])
        others = torch.ones(len(flat), dtype=torch.bool).index_fill_(0, ins["slots"], False)
        assert torch.equal(flat[others].view(torch.int64), old[others].view(torch.int64))
