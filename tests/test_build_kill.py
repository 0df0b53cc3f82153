"""A build that is killed at any write leaves either the engine that was there or the new one, never a part."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from allotrope.artifact.engine import open_engine
from allotrope.artifact.manifest import Manifest
from tests import engine_kit

DRIVER = [sys.executable, "-m", "tests.build_to_death"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 99,
}


class Victim:
    """A process that forks children which die at a given point."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def die_at(self, point: int) -> bool:
        """Whether the child was killed; False if it came to its end before."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{point}\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code != 0


@contextmanager
def victim(mode: str, target: Path, version: str = "new") -> Iterator[Victim]:
    with subprocess.Popen(
        [*DRIVER, mode, str(target), version], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Victim(process)
        assert process.stdin is not None
        process.stdin.close()


def engine(target: Path) -> Manifest | None:
    """The engine at `target`, every digest checked; None if there is none at all."""
    return open_engine(target, check_digests=True).manifest if target.exists() else None


@pytest.mark.parametrize(
    ("replacing", "stride"), [(False, 1), (True, 3), pytest.param(True, 1, marks=pytest.mark.slow)]
)
def test_killed_at_every_write(tmp_path: Path, replacing: bool, stride: int) -> None:
    target = tmp_path / "e"
    seen = []
    with victim("kit", target) as process:
        point = 0
        while True:
            point += stride
            if target.exists():
                shutil.rmtree(target)
            if replacing:
                engine_kit.write(target, version="old")  # also buries what the last killed build left
            if not process.die_at(point):
                break
            found = engine(target)
            seen.append(None if found is None else found.version)
    assert point > 40
    before = "old" if replacing else None
    turn = seen.index("new")
    assert seen == [before] * turn + ["new"] * (len(seen) - turn)  # it changes once, and wholly
    assert turn > 30 / stride
    engine_kit.write(target, version="last")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert engine_kit.load(target)["version"] == "last"


def test_a_whole_build_killed(tmp_path: Path) -> None:
    """The same for the builder itself, at every ninth point."""
    target = tmp_path / "e"
    checkpoint = f"random:{tmp_path / 'config.json'}"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    outcomes = set()
    with victim(checkpoint, target) as process:
        for point in range(1, 1000, 9):
            if not process.die_at(point):
                break
            found = engine(target)
            outcomes.add(None if found is None else found.family)
            if found is not None:
                shutil.rmtree(target)
        else:
            raise AssertionError("it never came to its end")
    assert outcomes >= {None} and point > 20
    assert engine(target) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "e"]
