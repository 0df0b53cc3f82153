"""A planted bug is found and named; a healthy engine is never accused.

Bugs are planted in the engine (its digests made consistent, so that only comparing can tell) and in the
code. Each is looked for twice: with everything, and with the numeric levels alone, which know neither the
plan's numbers nor the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.plan import Call, Plan
from allotrope.verify.session import Question, Result, verify
from allotrope.verify.verdict import DEGRADED, default_requirement, enough
from tests.verifying import Forge, with_call, with_params

NUMERIC = ("layers", "logits", "tokens")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(tmp_path_factory.mktemp("engines"))


def numeric(path: Path) -> Result:
    return verify(path, Question(levels=NUMERIC, locate=True, new_tokens=8))


def passes(result: Result) -> bool:
    return enough(result.findings.verdict, default_requirement(result.findings.dtype))


def without_bias(call: Call) -> Call:
    return replace(call, ins={name: slot for name, slot in call.ins.items() if name != "bias"})


def heads_swapped(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Heads of eight channels: the first two change places."""
    return np.concatenate((weight[8:16], weight[:8], weight[16:]))


def scaled_base(plan: Plan) -> Plan:
    return with_params("blocks.1.attn.k_rotary", base=12_000.0)(
        with_params("blocks.1.attn.q_rotary", base=12_000.0)(plan)
    )


# name: (family, change of the plan, changes of slots, path and op that must be named)
PLANTS: dict[str, tuple[str, Callable[[Plan], Plan] | None, Mapping[str, Any], str, str]] = {
    "transposed weight": ("llama", None, {"blocks.1.attn.o.weight": np.transpose}, "blocks.1.attn.o", "linear"),
    "transposed part of a fused weight": (
        "llama",
        None,
        {"blocks.1.attn.v.weight": np.transpose},
        "blocks.1.attn.v",
        "linear",
    ),
    "dropped bias": ("gpt2", with_call("blocks.1.mlp.up", without_bias), {}, "blocks.1.mlp.up", "linear"),
    "rope base": ("llama", scaled_base, {}, "blocks.1.attn.q_rotary", "rotary"),
    "norm epsilon": ("llama", with_params("blocks.1.mlp.norm", eps=1e-2), {}, "blocks.1.mlp.norm", "rmsnorm"),
    "layer norm epsilon": ("gpt2", with_params("blocks.2.attn.norm", eps=1e-2), {}, "blocks.2.attn.norm", "layernorm"),
    "permuted heads": ("llama", None, {"blocks.2.attn.q.weight": heads_swapped}, "blocks.2.attn.q", "linear"),
    "attention scale": (
        "opt",
        with_params("blocks.1.attn.attention", scale=0.25),
        {},
        "blocks.1.attn.attention",
        "attention",
    ),
    "window": ("mistral", with_params("blocks.0.attn.attention", window=8), {}, "blocks.0.attn.attention", "attention"),
    "position offset": ("opt", with_params("embed.positions", offset=1), {}, "embed.positions", "add_positions"),
    "activation": ("gpt2", with_params("blocks.1.mlp.act", kind="relu"), {}, "blocks.1.mlp.act", "activation"),
    "tied head": ("gpt2", None, {"embed.weight": lambda table: np.roll(table, 1, axis=0)}, "embed", "embed"),
}


@pytest.mark.parametrize("dtype", ("fp32", "bf16", "fp16"))
@pytest.mark.parametrize("name", PLANTS)
def test_a_bug_in_the_engine_is_named(forge: Forge, name: str, dtype: str) -> None:
    family, plan, slots, path, op = PLANTS[name]
    bad = forge.planted(forge.built(family, dtype), plan=plan or (lambda same: same), slots=slots)
    for levels in (None, NUMERIC):
        asked = (
            Question(locate=True, new_tokens=8)
            if levels is None
            else Question(levels=levels, locate=True, new_tokens=8)
        )
        result = verify(bad, asked)
        located = result.findings.located
        assert not passes(result), (levels, result.findings.verdict)
        assert located is not None and (located.path, located.op) == (path, op), (levels, located)
        assert path.startswith(located.block)
    assert verify(bad, Question(levels=("preflight",))).findings.verdict == DEGRADED
