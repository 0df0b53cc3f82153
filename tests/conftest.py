"""Shared fixtures: where the third-party test data lies, and one thread per test process."""

from __future__ import annotations

from pathlib import Path

import pytest

from allotrope import settings


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of third-party test data; tests that need it skip without it."""
    folder = settings.assets()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set ALLOTROPE_ASSETS)")
    return folder


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("ALLOTROPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
