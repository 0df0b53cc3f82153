"""The policy: which layer takes which format, how it is said, and what cannot be asked for, in one line each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from allotrope import cli
from allotrope.artifact.plan import Plan
from allotrope.build import fuse
from allotrope.build.options import BuildOptions
from allotrope.commands.formats import add_weight_formats
from allotrope.errors import UsageError
from allotrope.models.lower import lower
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Recipe
from allotrope.quant.formats import Format, Store
from allotrope.quant.policy import Policy, Wanted, policy, with_tables
from allotrope.quant.rewrite import rewrite
from tests.narrow_kit import checkpoint

NORM = Norm("rms", 1e-5)
INT4, INT8, FP8 = Format("int4", 32), Format("int8"), Format("fp8")


def plan(*, tied: bool = False, layers: int = 3, dtype: str = "fp32") -> Plan:
    block = Block(Attention(4, 2, 16, bias=True), Mlp(96, "silu", gated=True), NORM)
    return lower(Recipe(50, 64, 64, (block,) * layers, NORM, tied=tied), dtype)


def chosen(over: Plan | None = None, **wanted: Any) -> Policy:
    return policy(over or plan(), Wanted(**wanted))


def test_blocks_take_the_format_and_nothing_else_does() -> None:
    found = chosen(weights="int4").formats
    assert {form for path, form in found.items() if path.startswith("blocks.")} == {INT4}
    assert len(found) == 3 * 7 + 1 and found["head"] is None
    assert set(chosen().formats.values()) == {None}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ((), {"q": INT4, "down": INT4}),
        (("*.down=int8",), {"q": INT4, "down": INT8}),
        (("*.down=int8", "blocks.*=wide"), {"q": None, "down": None}),  # the last that matches
        (("blocks.*=wide", "*.down=int8"), {"q": None, "down": INT8}),
        (("blocks.[12].*=fp8",), {"q": INT4, "down": INT4}),
        (("blocks.0.attn.?=fp8", "blocks.0.mlp.*=int8:32"), {"q": FP8, "down": Format("int8", 32)}),
        (("*.q=int4:64", "*.down=fp16"), {"q": Format("int4"), "down": Store("fp16")}),
        (("*.q=fp32", "*.down=bf16"), {"q": None, "down": Store("bf16")}),
    ],
)
def test_the_last_exception_that_matches_wins(keep: tuple[str, ...], expected: dict[str, Any]) -> None:
    found = chosen(weights="int4", keep=keep).formats
    assert {name: found[f"blocks.0.{place}.{name}"] for place, name in (("attn", "q"), ("mlp", "down"))} == expected


def test_groups_and_zeros_are_int4s_own() -> None:
    """What `--weights` says of groups holds for exceptions of the same format; zeros for every int4."""
    found = chosen(
        weights="int4", group_size=64, asymmetric=True, keep=("*.q=int8", "*.k=int4", "*.v=int4:32", "*.mlp.*=wide")
    ).formats
    names = ("o", "q", "k", "v")
    assert [found[f"blocks.0.attn.{name}"] for name in names] == [
        Format("int4", None, False),
        INT8,
        Format("int4", None, False),
        Format("int4", 32, False),
    ]
    assert chosen(weights="int8", asymmetric=True, keep=("*.q=int4",)).formats["blocks.0.attn.q"] == Format(
        "int4", 32, False
    )

    for weights in (None, "fp16"):  # which have no groups: then exceptions are who is meant
        assert chosen(weights=weights, group_size=32, keep=("head=int8",)).formats["head"] == Format("int8", 32)
    assert chosen(group_size=64, keep=("head=int4",)).formats["head"] == Format("int4")  # 64 wide
    assert chosen(weights="int8", group_size=32, keep=("head=int8", "*.q=int4:64")).formats["head"] == Format(
        "int8", 32
    )


def test_what_stands_outside_of_the_blocks_asks_for_no_calibration() -> None:
    assert chosen(keep=("head=int4",)).method == "nearest"
    assert chosen(weights="int8", keep=("head=int4",)).method == "nearest"
    assert chosen(keep=("*.q=int4",)).method == "gptq"


def test_the_compute_dtype_is_wide() -> None:
    assert set(chosen(plan(dtype="bf16"), weights="bf16").formats.values()) == {None}
    assert chosen(plan(dtype="bf16"), weights="int8", keep=("*.q=bf16",)).formats["blocks.0.attn.q"] is None


def test_activations_meet_codes_of_their_own_kind_alone() -> None:
    found = chosen(weights="int8", activations="int8", keep=("*.down=fp8", "*.up=int8:32", "*.o=wide"))
    kinds = {name: found.product(f"blocks.0.{name}") for name in ("attn.q", "attn.o", "mlp.up", "mlp.down")}
    assert kinds == {"attn.q": "int8", "attn.o": None, "mlp.up": "int8", "mlp.down": None}
    calls = {call.path: call for call in rewrite(plan(), found).calls}
    assert calls["blocks.0.attn.q"].params == {"format": "int8", "activations": "int8"}
    assert calls["blocks.0.mlp.down"].params == {"format": "fp8"}


def test_it_is_said_in_few_lines() -> None:
    found = chosen(plan(layers=12), weights="int4", keep=("blocks.0.*=wide", "blocks.11.*.down=int8"))
    assert list(found.lines()) == [
        "blocks.0: wide",
        "blocks.1 … 10: int4 in groups of 32",
        "blocks.11: attn.q, attn.k, attn.v, attn.o, mlp.gate, mlp.up int4 in groups of 32; mlp.down int8 per channel",
        "outside of blocks: wide",
    ]
    assert next(chosen(weights="int8", activations="int8").lines()) == (
        "blocks.0 … 2: int8 per channel, activations int8 per token"
    )


def test_the_plan_reads_codes_and_is_otherwise_the_same() -> None:
    before = plan()
    after = rewrite(before, chosen(weights="int4", asymmetric=True, keep=("*.o=fp16", "*.1.mlp.*=wide")))
    assert [call.path for call in after.calls] == [call.path for call in before.calls]
    assert after.buffers == before.buffers
    for old, new in zip(before.calls, after.calls, strict=True):
        same = {"x", "bias"} & set(old.ins)
        assert new.outs == old.outs and {n: new.ins[n] for n in same} == {n: old.ins[n] for n in same}
    q = next(call for call in after.calls if call.path == "blocks.1.attn.q")
    assert {name: q.ins[name] for name in ("codes", "scales", "zeros")} == {
        name: f"w:blocks.1.attn.q.{name}" for name in ("codes", "scales", "zeros")
    }
    shapes = {name: after.weights[f"blocks.1.attn.q.{name}"] for name in ("codes", "scales", "zeros")}
    assert {name: (weight.parts[0][1], weight.dtype) for name, weight in shapes.items()} == {
        "codes": ((64, 32), "uint8"),
        "scales": ((64, 2), "fp16"),
        "zeros": ((64, 2), "uint8"),
    }
    assert "blocks.1.attn.q.weight" not in after.weights
    assert after.weights["blocks.1.attn.o.weight"].dtype == "fp16"
    assert Plan.from_json(after.to_json()) == after


def test_only_what_lies_alike_is_fused() -> None:
    """Side by side where op, format, groups and zeros agree; elsewhere apart, in the columns of the same buffer."""
    qkv, gate_up = fuse.by_name("qkv"), fuse.by_name("gate_up")
    narrow = rewrite(plan(), chosen(weights="int4", keep=("*.1.attn.v=int4:64", "*.2.attn.*=fp16", "*.0.mlp.up=wide")))
    assert fuse.why_not(narrow, qkv) is None and fuse.why_not(narrow, gate_up) is None
    after = fuse.apply(fuse.apply(narrow, qkv), gate_up)
    ops = {call.path: call.op for call in after.calls if call.path.split(".")[-1] in ("qkv", "q", "v", "gate_up", "up")}
    assert ops == {
        "blocks.0.attn.qkv": "linear_codes",
        "blocks.1.attn.q": "linear_codes",
        "blocks.1.attn.v": "linear_codes",
        "blocks.2.attn.qkv": "linear_stored",
        "blocks.0.mlp.up": "linear",
        "blocks.1.mlp.gate_up": "linear_codes",
        "blocks.2.mlp.gate_up": "linear_codes",
    }
    [fused] = [call for call in after.calls if call.path == "blocks.0.attn.qkv"]
    assert fused.params == {"format": "int4"}
    assert [slot for slot, _ in after.weights[fused.ins["scales"][2:]].parts] == [
        f"blocks.0.attn.{part}.scales" for part in "qkv"
    ]
    assert after.weights[fused.ins["codes"][2:]].dtype == "uint8"
    [apart] = [call for call in after.calls if call.path == "blocks.1.attn.k"]
    assert after.buffers[apart.outs["out"][2:]].of == "qkv"
    everywhere = rewrite(plan(), chosen(keep=("*.q=int8",)))
    assert "side by side" in str(fuse.why_not(everywhere, qkv))


@pytest.mark.parametrize(
    ("word", "op", "params"),
    [
        ("int8", "embed_codes", {"format": "int8"}),
        ("int4:32", "embed_codes", {"format": "int4"}),
        ("fp16", "embed_stored", {"store": "fp16"}),
    ],
)
def test_a_tied_head_is_looked_up_as_it_is_stored(word: str, op: str, params: dict[str, str]) -> None:
    wide = plan(tied=True)
    found = rewrite(wide, chosen(wide, keep=(f"head={word}",)))
    first, last = found.calls[0], next(call for call in found.calls if call.path == "head")
    assert (first.op, first.path, dict(first.params)) == (op, "embed", params)
    shared = {slot for slot in first.ins.values() if slot.startswith("w:")}
    assert shared <= set(last.ins.values()) and (word == "fp16") == ("embed.weight" in found.weights)
    assert rewrite(wide, chosen(wide, weights="int8")).calls[0].op == "embed"


@pytest.mark.parametrize(
    ("tied", "dtype", "stored", "wanted", "op"),
    [
        (False, "fp32", "bf16", {"weights": "int8"}, "embed_stored"),
        (False, "fp32", "fp16", {"weights": "bf16"}, "embed_stored"),  # its own, whatever the others have
        (False, "fp32", "bf16", {"keep": ("head=int8",)}, "embed_stored"),
        (False, "fp32", "fp32", {"weights": "int8"}, "embed"),  # nothing is rounded that was not asked for
        (False, "fp32", "bf16", {"kv": "int8"}, "embed"),  # all weights are wide
        (False, "bf16", "bf16", {"weights": "int8"}, "embed"),  # that is what is computed in
        (True, "fp32", "bf16", {"weights": "int8"}, "embed"),  # the head reads it
    ],
)
def test_an_embedding_of_its_own_keeps_the_checkpoints_bits(
    tied: bool, dtype: str, stored: str, wanted: dict[str, Any], op: str
) -> None:
    wide = plan(tied=tied, dtype=dtype)
    found = with_tables(chosen(wide, **wanted), wide, lambda slot: stored)
    after = rewrite(wide, found)
    assert after.calls[0].op == op
    if op == "embed_stored":
        assert after.calls[0].params == {"store": stored} and after.weights["embed.weight"].dtype == stored
        assert f"outside of blocks: embed {stored}, as the checkpoint has it" in list(found.lines())[-1]


def test_four_bits_in_groups_meet_activations_in_eight() -> None:
    found = chosen(weights="int4", activations="int8", keep=("*.down=fp8", "*.up=int8:32"))
    met = {name: found.product(f"blocks.0.mlp.{name}") for name in ("gate", "up", "down")}
    assert met == {"gate": "int8", "up": "int8", "down": None}
    assert found.words("blocks.0.mlp.gate") == "int4 in groups of 32, activations int8 per token"
    assert found.product("head") is None


def test_the_head_has_an_option_of_its_own() -> None:
    def kept(*words: str) -> list[str]:
        parser = argparse.ArgumentParser()
        add_weight_formats(parser)
        found: list[str] = parser.parse_args(words).keep
        return found

    assert kept("--head", "int8") == ["head=int8"]
    assert kept("--keep", "h*=wide", "--head", "int8") == ["head=int8", "h*=wide"]  # the last that matches wins
    assert kept() == [] and kept("--keep", "a=wide") == ["a=wide"]


REFUSED = [
    ({"weights": "int3"}, "--weights is 'int3'; choose int8, int4, fp8, fp16, bf16"),
    ({"group_size": 32}, "--group-size is 32, but no weights are to be int8 or int4; add --weights int4"),
    ({"weights": "fp16", "group_size": 32}, "--group-size is 32, but no weights are to be int8 or int4"),
    ({"weights": "int4", "group_size": 48}, "group size is 48; it must be one of 32, 64, 128"),
    ({"weights": "fp8", "group_size": 32}, "group size is 32; fp8 has one scale per row"),
    ({"asymmetric": True}, "--asymmetric is for int4, and no weights are to be int4; add --weights int4"),
    ({"weights": "int8", "asymmetric": True}, "--asymmetric is for int4"),
    ({"method": "gptq"}, "--method is gptq, but no weights are to be quantised; add --weights int8, int4, fp8"),
    ({"weights": "fp16", "method": "nearest"}, "--method is nearest, but no weights are to be quantised"),
    ({"weights": "int8", "method": "magic"}, "--method is 'magic'; choose auto, nearest, gptq, awq"),
    (
        {"activations": "int8"},
        "--activations is int8, and weights stay wide; int8 meets int8 and int4; add --weights int8 or int4",
    ),
    ({"weights": "int4", "activations": "fp8"}, "--activations is fp8, and --weights is int4; fp8 meets fp8"),
    ({"weights": "int8", "activations": "int4"}, "--activations is 'int4'; choose int8, fp8"),
    (
        {"weights": "int8", "without": "smooth"},
        "without is smooth, which serves narrow activations alone, and activations stay wide; add --activations int8",
    ),
    (
        {"weights": "int8", "without": "centre"},
        "without is centre, which serves narrow keys and values alone, and keys and values stay wide; add --kv int8",
    ),
    ({"keep": ("blocks.0.*",)}, "--keep is 'blocks.0.*'; give PATTERN=FORMAT, as in 'blocks.0.*=wide'"),
    ({"keep": ("=int8",)}, "--keep is '=int8'; give PATTERN=FORMAT"),
    ({"keep": ("*=int5",)}, "--keep is '*=int5': 'int5' is no format; formats are wide, fp32, fp16, bf16, int8, int4,"),
    ({"keep": ("*=int4:48",)}, "'int4:48' is no format"),
    ({"keep": ("*=int4:",)}, "'int4:' is no format"),
    ({"keep": ("*=fp8:32",)}, "group size is 32; fp8 has one scale per row"),
]


@pytest.mark.parametrize(("wanted", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_words_that_cannot_be_are_refused_at_once(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        BuildOptions.of(**wanted)
    assert str(refused.value).startswith(said) or said in str(refused.value)
    assert "\n" not in str(refused.value)


OVER_A_PLAN = [
    (
        {"keep": ("blocks.7.*=int8",)},
        plan(),
        "--keep 'blocks.7.*' matches no linear layer; layers are blocks.0.attn.q,",
    ),
    ({"keep": ("embed=int8",)}, plan(), "--keep 'embed' matches no linear layer"),
    (
        {"weights": "int4", "group_size": 128},
        plan(),
        "blocks.0.attn.q: group size is 128; it must divide the width, 64",
    ),
    ({"keep": ("*.down=int4:64",)}, plan(), "blocks.0.mlp.down: group size is 64; it must divide the width, 96"),
    (
        {"keep": ("head=int4",), "method": "gptq"},
        plan(),
        "--method is gptq, but no layer of the blocks is to be quantised, and others are rounded to nearest; leave it",
    ),
    (
        {"weights": "fp16"},
        plan(dtype="bf16"),
        "--weights is fp16, but the engine computes in bf16; add --dtype fp16, or --dtype fp32",
    ),
    (
        {"keep": ("*.q=fp32",)},
        plan(dtype="fp16"),
        "--keep '*.q' is fp32, but the engine computes in fp16; add --dtype fp32",
    ),
]


@pytest.mark.parametrize(("wanted", "over", "said"), OVER_A_PLAN, ids=lambda value: str(value)[:60])
def test_what_a_model_cannot_have_is_refused(wanted: dict[str, Any], over: Plan, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        chosen(over, **wanted)
    assert said in str(refused.value)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The policy first, then what it cost; a refusal in one line; an engine takes no options of building."""
    source, engine = str(checkpoint("llama", tmp_path / "ckpt")), str(tmp_path / "engine")
    options = ["--device", "cpu", "--tune", "off", "--weights", "int4", "--keep", "*.down=wide", "--keep", "*.2.*=int8"]
    assert cli.main(["build", source, "-o", engine, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "blocks.0 … 1: attn.q, attn.k, attn.v, attn.o, mlp.gate, mlp.up int4 in groups of"
    assert lines[2] == "blocks.2: int8 per channel"
    assert all(len(line) <= 80 for line in lines if engine not in line)
    assert any(line.startswith("attn.q ×2    int4 by 32") for line in lines)
    assert any(line.startswith("quantised by nearest: ") for line in lines)
    assert cli.main(["build", source, "-o", engine, "--keep", "*.nothing=int8", "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "matches no linear layer" in said[0]
    assert cli.main(["run", engine, "x", "--weights", "int8"]) == 2
    assert "weights is an option of building" in capsys.readouterr().err
