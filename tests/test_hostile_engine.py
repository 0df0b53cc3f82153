"""engine.json with lies about what the calls do, under a digest that fits; and files that do not belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allotrope.artifact.dataflow import STEP_SLOTS
from allotrope.artifact.engine import open_engine
from allotrope.errors import EngineError
from allotrope.models.lower import lower
from allotrope.ops import registry
from allotrope.ops.contract import Role
from allotrope.quant.policy import Wanted, policy
from allotrope.quant.rewrite import rewrite
from tests import engine_kit


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    engine_kit.write(tmp_path / "e")
    return tmp_path / "e"


def refusal(engine: Path, change: Callable[[dict[str, Any]], object]) -> str:
    data = engine_kit.load(engine)
    change(data)
    engine_kit.store(engine, data)
    with pytest.raises(EngineError) as caught:
        open_engine(engine)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000 and str(engine) in text
    return text


def call(data: dict[str, Any], op: str) -> dict[str, Any]:
    return next(call for call in data["plan"]["calls"] if call["op"] == op)


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        *(("attention", "heads", value) for value in (0, -4, 3, 2**40, "4", 4.0, True, None, [], {}, [[4]])),
        *(("attention", "kv_heads", value) for value in (0, 3, "x", {})),
        *(("attention", "head_dim", value) for value in (0, 7, [6])),
        *(("attention", "scale", value) for value in (0, -1.0, 10**400, "x", None, [])),
        *(("attention", "window", value) for value in (-1, 2**70, 1.5, "", [])),
        *(("layernorm", "eps", value) for value in (-1e-5, 10**400, "1e-5", None, {}, True)),
        *(("activation", "kind", value) for value in ("os.system", "", None, [], {}, 1)),
    ],
)
def test_parameters_that_cannot_be(engine: Path, op: str, name: str, value: object) -> None:
    text = refusal(engine, lambda data: call(data, op)["params"].update({name: value}))
    assert name in text or "heads" in text


def swap_first_calls(data: dict[str, Any]) -> None:
    calls = data["plan"]["calls"]
    calls[1], calls[2] = calls[2], calls[1]


def drop(op: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["plan"]["calls"].remove(call(data, op))


def exchange_caches(data: dict[str, Any]) -> None:
    found = call(data, "attention")["ins"]
    found["k_cache"], found["v_cache"] = found["v_cache"], found["k_cache"]


FLOWS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "calls out of order": (swap_first_calls, "is read before it is written"),
    "a missing call": (drop("layernorm"), "is read before it is written"),
    "no token drawn": (drop("sample"), "is never written"),
    "another step slot": (lambda d: call(d, "embed")["ins"].update(ids="s:kv_slots"), "must be in slot 's:tokens'"),
    "an unknown step slot": (lambda d: call(d, "kv_write")["ins"].update(slots="s:x"), "must be in slot 's:kv_slots'"),
    "a buffer for a weight": (
        lambda d: call(d, "linear")["ins"].update(weight="b:x"),
        "axis out of op linear is both 1 and 24",
    ),
    "a cache for a buffer": (lambda d: call(d, "linear")["ins"].update(x="c:0.k"), "operand x of op linear has 3 axes"),
    "keys for values": (exchange_caches, "k_cache is in slot 'c:0.v'"),
    "another layer's keys": (lambda d: call(d, "attention")["ins"].update(k_cache="c:1.k"), "different layers"),
    "an unused buffer": (
        lambda d: d["plan"]["buffers"].update(huge=dict(d["plan"]["buffers"]["x"], width=2**31 - 1)),
        "buffer huge is never written",
    ),
    "a buffer's dtype": (lambda d: d["plan"]["buffers"]["x"].update(dtype="fp32"), "is compute, buffer x fp32"),
    "a buffer's rows": (lambda d: d["plan"]["buffers"]["x"].update(rows="samples"), "rows"),
    "the vocabulary": (lambda d: d["plan"].update(vocab=10**6), "99 words, the plan has 1000000"),
    "an endless name": (lambda d: d["plan"].update(hidden="x" * 10**6), "does not exist"),
    "a terminal's escape": (lambda d: d["plan"].update(hidden="\x1b[31m\n\ud800"), r"\x1b[31m"),
    "a step slot for a buffer": (
        lambda d: call(d, "add")["ins"].update(a="s:tokens"),
        "a may not be in slot 's:tokens'",
    ),
    "a call without a name": (lambda d: d["plan"]["calls"][0].update(path={"a": 1}), "a call's path is"),
    "an end beyond the vocabulary": (lambda d: d["generation"].update(eos_token_ids=[99]), "names the token 99, of 99"),
    "ends that are none": (lambda d: d["generation"].update(eos_token_ids=7), "eos_token_ids is 7"),
    "a beginning that is a word": (lambda d: d["generation"].update(bos_token_id="x"), "names the token 'x'"),
}


@pytest.mark.parametrize("lie", FLOWS)
def test_calls_that_do_not_fit_together(engine: Path, lie: str) -> None:
    change, message = FLOWS[lie]
    assert message in refusal(engine, change)


def test_every_step_slot_that_is_lowered_is_where_the_reader_wants_it() -> None:
    for made in lower(engine_kit.RECIPE, "fp32").calls:
        for operand, spec in registry.contract(made.op).ins.items():
            if spec.role in (Role.STEP, Role.HOST):
                assert made.ins[operand] == f"s:{STEP_SLOTS.get(operand, operand)}"


@pytest.mark.parametrize("name", ["tokenizer/chat_template.jinja", "tokenizer/added_tokens.json", "weights/x"])
def test_files_that_no_digest_covers_are_refused(engine: Path, name: str) -> None:
    (engine / name).write_text("{}", encoding="utf-8")
    with pytest.raises(EngineError, match=f"{name}: is no part of the engine; remove it"):
        open_engine(engine)
    (engine / name).rename(engine / "verify.json")  # the verdict lies in the folder itself
    (engine / "tokenizer" / ".DS_Store").touch()
    open_engine(engine)


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b"])
def test_paths_that_no_system_takes(name: str) -> None:
    with pytest.raises(EngineError, match=r"cannot be read|no such engine folder"):
        open_engine(name)


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """The kit's engine with weights of every kind in few bits."""
    wanted = Wanted(keep=("blocks.0.*=int8", "blocks.1.attn.*=int4", "blocks.1.mlp.*=fp16"))
    rewritten = rewrite(plan := lower(engine_kit.WIDER), policy(plan, wanted))
    engine_kit.write_plan(tmp_path / "narrow", rewritten)
    return tmp_path / "narrow"


def test_an_engine_of_codes_opens(narrow: Path) -> None:
    plan = open_engine(narrow, check_digests=True).manifest.plan
    assert {call.op for call in plan.calls} >= {"linear", "linear_codes", "linear_stored"}


LIES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("linear_codes", lambda call: call["params"].update(format="int5"), "parameter format is 'int5'"),
    ("linear_codes", lambda call: call["params"].update(format=["int8"]), "parameter format is"),
    ("linear_codes", lambda call: call["params"].update(format="int4"), "do not fit"),
    ("linear_codes", lambda call: call["params"].update(format="fp16"), "parameter format is 'fp16'"),
    ("linear_codes", lambda call: call["ins"].pop("scales"), "operands"),
    ("linear_codes", lambda call: call["ins"].update(zeros=call["ins"]["codes"]), "axis"),
    ("linear_codes", lambda call: call["ins"].update(codes=call["ins"]["scales"]), "do not fit"),
    ("linear_stored", lambda call: call["params"].update(store="fp32"), "parameter store is 'fp32'"),
    ("linear_stored", lambda call: call.update(op="linear", params={}), "is stored as fp16"),
]


@pytest.mark.parametrize(("op", "lie", "said"), LIES, ids=lambda value: value if isinstance(value, str) else "")
def test_codes_that_cannot_be(narrow: Path, op: str, lie: Callable[[dict[str, Any]], object], said: str) -> None:
    assert said in refusal(narrow, lambda data: lie(call(data, op)))


@pytest.mark.parametrize(("part", "dtype"), [("codes", "fp32"), ("codes", "compute"), ("scales", "uint8")])
def test_codes_of_a_dtype_that_they_have_not(narrow: Path, part: str, dtype: str) -> None:
    def lie(data: dict[str, Any]) -> None:
        name = call(data, "linear_codes")["ins"][part].removeprefix("w:")
        data["plan"]["weights"][name]["dtype"] = dtype

    assert "is stored as" in refusal(narrow, lie)
