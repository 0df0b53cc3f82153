"""The registry finds ops and tactics by listing folders, and each keeps to its contract."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from allotrope.errors import EngineError, UsageError
from allotrope.ops import registry
from allotrope.ops.contract import Role
from allotrope.ops.packing import PACKINGS

CORE = {"embed", "add_positions", "layernorm", "rmsnorm", "linear", "activation", "gated", "add", "select_rows"}


def test_names_are_the_folders() -> None:
    folders = {path.parent.name for path in Path(registry.__file__).parent.glob("*/__init__.py")}
    assert set(registry.names()) == folders
    assert folders >= CORE
    assert list(registry.names()) == sorted(registry.names())


@pytest.mark.parametrize("op", registry.names())
def test_every_op_is_whole(op: str) -> None:
    contract = registry.contract(op)
    assert contract.name == op
    assert callable(contract.cost)
    module = registry.reference_module(op)
    assert callable(module.reference)
    assert callable(module.make_inputs)
    assert contract.outs
    assert contract.rows == "rows"


@pytest.mark.parametrize("op", registry.names())
def test_every_tactic_keeps_to_its_op(op: str) -> None:
    contract, tactics = registry.contract(op), registry.tactics(op)
    assert tactics, f"{op} has no tactic"
    assert len({tactic.name for tactic in tactics}) == len(tactics)
    weights = {name for name, operand in contract.ins.items() if operand.role is Role.WEIGHT}
    for tactic in tactics:
        assert tactic.op == op
        assert tactic.name.partition("_")[0] in registry.libraries(op), "a tactic's name starts with its library"
        assert tactic.version >= 1
        assert set(tactic.packings()) <= weights
        assert set(tactic.packings().values()) <= set(PACKINGS)
        assert registry.tactic(op, tactic.name) is tactic
    assert registry.tactic(op, "reference").name == "reference"
    assert "reference" not in {tactic.name for tactic in tactics}


@pytest.mark.parametrize("op", ["linear", "layernorm", "rmsnorm", "activation", "gated"])
def test_choosing_is_real(op: str) -> None:
    assert len(registry.tactics(op)) >= 2


def test_unknown_names_say_what_to_do() -> None:
    with pytest.raises(EngineError, match=r"op linear has no tactic 'torch_magic'.*allotrope build"):
        registry.tactic("linear", "torch_magic")
    with pytest.raises(EngineError, match="'triton_tile'"):
        registry.tactic("linear", "triton_tile")
    with pytest.raises(UsageError, match=r"no op 'convolution'.*linear"):
        registry.contract("convolution")
    with pytest.raises(UsageError, match="no op"):
        registry.tactics("convolution")


def _import_failing(missing: str) -> object:
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> ModuleType:
        if "via_" in name:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, package)

    return import_module


@pytest.fixture
def _forgetful() -> object:
    caches = (registry.tactics, registry.tactic, registry._tactics_of)
    for cached in caches:
        cached.cache_clear()
    yield None
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("_forgetful")
def test_a_library_that_is_not_installed_gives_no_tactics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib, "import_module", _import_failing("torch"))
    assert {tactic.name for tactic in registry.tactics("add")} <= {"native"}  # which need no library
    with pytest.raises(EngineError, match="in this installation"):
        registry.tactic("add", "torch")


@pytest.mark.usefixtures("_forgetful")
def test_a_broken_tactic_file_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib, "import_module", _import_failing("allotrope.ops.gone"))
    with pytest.raises(ModuleNotFoundError, match="gone"):
        registry.tactics("add")


def test_contracts_load_no_torch() -> None:
    code = (
        "import sys; from allotrope.ops import registry, functional\n"
        "[registry.contract(op) for op in registry.names()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_reference_tactic_computes_in_fp32_and_rounds_once() -> None:
    x = torch.full((1, 4096), 0.01).bfloat16()
    weight = torch.ones(1, 4096).bfloat16()
    out = torch.empty(1, 1).bfloat16()
    registry.tactic("linear", "reference").run({"out": out}, {"x": x, "weight": weight}, {}, None)
    assert out.item() == (x.double().sum()).bfloat16().item()


def test_reference_tactic_passes_bits_of_an_exact_op() -> None:
    table = torch.arange(0x7FC1, 0x7FC7, dtype=torch.int16).view(torch.bfloat16).reshape(3, 2)  # NaNs, all different
    out = torch.empty(2, 2).bfloat16()
    ids = torch.tensor([2, 0])
    registry.tactic("embed", "reference").run({"out": out}, {"ids": ids, "table": table}, {}, None)
    assert torch.equal(out.view(torch.int16), table[ids].view(torch.int16))
