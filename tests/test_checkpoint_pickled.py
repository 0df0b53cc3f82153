"""Pickled weights: refused, or converted by a process that can do nothing else."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from allotrope import settings
from allotrope.errors import CheckpointError
from allotrope.models.readers import pickle_worker
from allotrope.models.readers.open import open_checkpoint

TIED = torch.arange(6.0).view(2, 3)
TABLE = {"a": torch.randn(4, 6).bfloat16(), "b": torch.ones(5).half(), "t": TIED.t(), "tied": TIED}
TABLE |= {"none": torch.empty(0, 3), "scalar": torch.tensor(7), "p": torch.nn.Parameter(torch.zeros(2))}


class Hostile:
    """What `os.system` would be called with, if somebody unpickled this."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.proof}'",)


def folder(top: Path) -> Path:
    top.mkdir()
    (top / "config.json").write_text("{}")
    return top


def refusal(path: Path, allow_pickle: bool = True) -> str:
    with pytest.raises(CheckpointError) as found:
        open_checkpoint(path, allow_pickle=allow_pickle)
    assert "\n" not in str(found.value)
    assert "weights_only" not in str(found.value), "torch's advice to switch the protection off"
    return str(found.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_refused_by_default(name: str, tmp_path: Path) -> None:
    (folder(tmp_path / "m") / name).write_bytes(pickle.dumps(Hostile(tmp_path / "proof")))
    message = refusal(tmp_path / "m", allow_pickle=False)
    assert f"the weights are pickled ({name}), and opening a pickle can run code" in message
    assert "--allow-pickle" in message
    assert not (tmp_path / "proof").exists()
    assert not settings.cache_dir().joinpath("converted").exists() or not list(tmp_path.glob("*.safetensors"))


def test_converted_once_and_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "m") / "pytorch_model.bin"
    torch.save(TABLE, path)
    (path.parent / "training_args.bin").write_bytes(b"what training leaves")
    first = open_checkpoint(path.parent, allow_pickle=True)
    assert set(first.tensors) == set(TABLE)
    for name, tensor in TABLE.items():
        plain = tensor.detach().contiguous()
        expected = plain.view(torch.int16).numpy().view(np.uint16) if name == "a" else plain.numpy()
        assert first.read(name).tobytes() == expected.tobytes(), name
        assert first.read(name).shape == expected.shape
        assert first.read(name).dtype == expected.dtype
    assert first.tensors["a"].dtype == "bf16"

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("converted a second time"))
    again = open_checkpoint(path.parent, allow_pickle=True)
    assert again.digest() == first.digest()
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(path.parent)  # what was allowed once is not allowed for ever

    torch.save({"a": torch.zeros(3)}, path)
    changed = open_checkpoint(path.parent, allow_pickle=True)
    assert set(changed.tensors) == {"a"}
    assert changed.digest() != first.digest()


def test_sharded_and_the_format_from_before_torch_1_6(tmp_path: Path) -> None:
    top = folder(tmp_path / "m")
    one, two = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    torch.save({"a": torch.ones(2)}, top / one, _use_new_zipfile_serialization=False)
    torch.save({"b": torch.ones(3)}, top / two)
    index = top / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": one, "b": two}}))
    found = open_checkpoint(top, allow_pickle=True)
    assert {name: info.shape for name, info in found.tensors.items()} == {"a": (2,), "b": (3,)}
    for weight_map, message in (
        ({"a": one, "b": two, "c": two}, f"tensor 'c' is said to lie in {two}, which does not have it"),
        ({"a": "../x.bin", "b": two}, "'../x.bin', which is no plain name"),
        ({"a": one}, f"{two} lies beside the shards, but pytorch_model.bin.index.json does not name it"),
        ({"a": one, "b": "y.bin"}, "'y.bin' is missing"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert message in refusal(top)
    index.unlink()
    assert f"which of {one}, {two} are the weights?" in refusal(top)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_hostile_pickle_is_refused_and_does_not_run(new_format: bool, tmp_path: Path) -> None:
    path = folder(tmp_path / "m") / "pytorch_model.bin"
    torch.save({"a": Hostile(tmp_path / "proof")}, path, _use_new_zipfile_serialization=new_format)
    assert f"{path}: asks for posix.system, which no table of weights needs: perhaps an attack" in refusal(path.parent)
    assert not (tmp_path / "proof").exists()
    assert not list((settings.cache_dir() / "converted").glob(".*tmp*"))


def test_a_damaged_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "m") / "pytorch_model.bin"
    torch.save(TABLE, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: is damaged, or no file of pickled weights" in refusal(path.parent)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(TABLE, folder(tmp_path / "m") / "pytorch_model.bin")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALLOTROPE_CACHE", str(tmp_path / "file"))
    assert "the conversion cannot be written" in refusal(tmp_path / "m")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([torch.ones(2)], "holds no table of tensors"),
        ({}, "holds no table of tensors"),
        ({"model": {"a": torch.ones(2)}}, "holds under 'model' a dict, not a tensor"),
        ({3: torch.ones(2)}, "holds a int where a tensor's name should be"),
        ({"a": torch.ones(2).to_sparse()}, "tensor 'a' is not a plain dense one"),
        ({"a": torch.ones(2, device="meta")}, "tensor 'a' is not a plain dense one"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "tensor 'a' has the unknown dtype torch.complex64"),
        ({"a": torch.ones(1).expand(10**9, 10**9)}, f"tensor 'a' claims {4 * 10**18} bytes and has 4"),
        ({str(i): TABLE["tied"] for i in range(100)}, "its tensors claim 2400 bytes, which its size does not allow"),
    ],
)
def test_what_is_no_flat_table_of_plain_tensors(table: object, message: str) -> None:
    with pytest.raises(pickle_worker.Refused, match=message):
        pickle_worker.checked(table, limit=1000)


ATTEMPTS = """
import json, os, socket, sys, pathlib
sys.path.insert(0, sys.argv[1])
import pickle_worker
out = pathlib.Path(sys.argv[2])
granted = (["no network"] if pickle_worker.cut_network() else []) + pickle_worker.lock_down(out, 1000)
def outcome(do):
    try:
        do()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"
def connect():
    with socket.create_connection(("127.0.0.1", int(sys.argv[3])), timeout=2):
        pass
print(json.dumps({
    "granted": granted,
    "read": outcome(lambda: pathlib.Path(sys.argv[1], "pickle_worker.py").read_text()),
    "write inside": outcome(lambda: (out / "x").write_text("1")),
    "write outside": outcome(lambda: (out.parent / "y").write_text("1")),
    "write too much": outcome(lambda: (out / "z").write_text("1" * 2000)),
    "delete": outcome(lambda: (out.parent / "victim").unlink()),
    "program": outcome(lambda: os.posix_spawn("/bin/true", ["true"], {})),
    "network": outcome(connect),
    "memory": outcome(lambda: bytearray(1 << 40)),
}))
"""


def test_what_a_hole_in_the_unpickler_would_find(tmp_path: Path) -> None:
    """Code that runs in the worker after all: it can read, write its result, and nothing else."""
    import socket

    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_text("1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-I", "-c", ATTEMPTS, str(Path(pickle_worker.__file__).parent)]
        command += [str(tmp_path / "out"), str(server.getsockname()[1])]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, env={}).stdout)
    assert found["read"] == found["write inside"] == "done"
    assert found["write too much"] == "OSError"
    assert found["memory"] == "MemoryError"
    assert {"limits", "no new privileges"} <= set(found["granted"])
    if "landlock" in found["granted"]:
        assert found["write outside"] == found["delete"] == found["program"] == "PermissionError"
        assert (tmp_path / "victim").exists()
    if "no network" in found["granted"]:
        assert found["network"] != "done"
    if not {"landlock", "no network"} <= set(found["granted"]):
        pytest.skip(f"this kernel grants only {found['granted']}")
