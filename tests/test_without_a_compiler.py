"""Setting up where nothing compiles: it says that there is no native core, and everything else is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAID = "No native core: a C++20 compiler"


def test_make_setup_says_so_and_goes_on(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "venv" / "bin"
    tools.mkdir(parents=True)
    for name, code in (("python", 0), ("cmake", 1)):  # installing goes well, configuring finds no compiler
        tools.joinpath(name).write_text(f"#!/bin/sh\nexit {code}\n")
        tools.joinpath(name).chmod(0o755)
    done = subprocess.run(
        ["make", "setup", "PYTHON=true", f"VENV={tools.parent}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and SAID in done.stdout, done.stderr
    assert "torch's tactics serve" in done.stdout


@pytest.mark.slow
def test_a_wheel_says_so_and_has_everything_else(tmp_path: Path) -> None:
    """Needs an index for what builds it."""
    tree = tmp_path / "tree"
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if name.split("/")[0] in ("allotrope", "native") or "/" not in name:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", str(tmp_path), str(tree)],
        env={**os.environ, "CXX": "/nowhere/c++", "CC": "/nowhere/cc"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Could not find a version" in done.stdout + done.stderr:
        pytest.skip("no package index is within reach")
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAID in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert "allotrope/cli.py" in inside and not [name for name in inside if "_core" in name]
