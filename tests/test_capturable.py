"""What says that a graph may hold it asks for no data: tried with tensors that have none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from allotrope.hw.device import Device
from allotrope.models.typical import typical_problems
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Role
from allotrope.runtime.captured import Unread

GPU = Device("cuda", "test", "sm_90", 132, 2**37)
# sampling has numbers for the kinds of device that it knows; it is captured in tests on a GPU
CAPTURABLE = [(op, t.name) for op in registry.names() if op != "sample" for t in registry.tactics(op) if t.capturable]


def imagined(op: str, name: str, dtype: str, rows: int) -> None:
    """Run a tactic on tensors that have a device and a shape, but no values."""
    tactic, problem = registry.tactic(op, name), typical_problems(dtype, rows)[op]
    contract = registry.contract(op)
    real = check.rounded(contract, problem, contract.make_inputs(problem, seed=0))
    ins: dict[str, Any] = {}
    for operand, value in real.items():
        if isinstance(value, torch.Tensor):
            turned = tactic.packings().get(operand) == "cols" and value.dim() > 1
            ins[operand] = (value.T if turned else value).to("meta")
        elif contract.ins[operand].role is Role.HOST:
            ins[operand] = {} if operand == "memo" else Unread()
    outs = {}
    for operand, spec in contract.outs.items():
        shape, dtype = poison.out_shape(contract, spec, problem, real), poison.torch_dtype(spec.dtype, problem.dtype)
        outs[operand] = ins[operand] if spec.inout else torch.empty(shape, dtype=dtype, device="meta")
    size = tactic.workspace(problem, GPU)
    workspace = torch.empty(size, dtype=torch.uint8, device="meta") if size else None
    tactic.run(outs, ins, contract.complete(problem.params), workspace)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize(("op", "name"), CAPTURABLE)
def test_it_asks_for_no_value(op: str, name: str, rows: int) -> None:
    tried = 0
    for dtype in ("fp16", "fp32"):
        if registry.tactic(op, name).why_not(typical_problems(dtype, rows)[op], GPU) is None:
            tried += 1
            imagined(op, name, dtype, rows)
    if not tried:
        pytest.skip("it does not run on a GPU")


def test_who_asks_for_a_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy: Any = registry.tactic("add", "torch")
    for run in (
        lambda out, ins, params, workspace: out["out"].fill_(float(ins["a"].sum())),
        lambda out, ins, params, workspace: out["out"].copy_(ins["a"][ins["a"].nonzero()[:, 0]]),
    ):
        nosy = dataclasses.replace(healthy, run=run)
        monkeypatch.setattr(registry, "tactic", lambda op, name, nosy=nosy: nosy)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            imagined("add", "torch", "fp16", 3)
