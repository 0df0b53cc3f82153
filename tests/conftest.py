"""Shared fixtures: third-party test data, a private cache, one thread for torch, a forge of engines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from allotrope import native, settings

if TYPE_CHECKING:  # tests of integers alone need not wait for torch
    from tests.narrow_engines import Narrow
    from tests.verifying import Forge


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of third-party test data; tests that need it skip without it."""
    folder = settings.assets()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set ALLOTROPE_ASSETS)")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache, nor does a module's fixture, which is made before its tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLOTROPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _patient_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a verb prints does not depend on how busy the machine is."""
    monkeypatch.setattr("allotrope.commands.output._SILENCE_S", math.inf)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: tiny matrices are too small to share out, and a busy machine makes sharing far slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """One forge for all test files of a process, so that nothing is built twice."""
    from tests.verifying import Forge

    return Forge(tmp_path_factory.getbasetemp() / "forge")


@pytest.fixture(scope="session")
def narrow(forge: Forge) -> Narrow:
    """Quantised engines, each built once."""
    from tests.narrow_engines import Narrow

    return Narrow(forge)


@pytest.fixture
def native_threads() -> Iterator[None]:
    """Whatever a test sets is taken back."""
    before = native.threads()
    yield
    native.set_threads(before)
