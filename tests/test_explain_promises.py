"""What `explain` is held to, on a shape of real size: the price of its clocks, and how near its predictions come."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from allotrope.build import build
from allotrope.cli import main
from allotrope.explain.drive import Asked
from bench import clocks
from tests.native_kit import needs_core

pytestmark = [needs_core, pytest.mark.slow]
SHAPE, ROUNDS = "random:llama-15m", 3


def test_the_core_s_clocks_cost_less_than_a_hundredth(tmp_path: Path) -> None:
    folder = build(SHAPE, tmp_path / "engine", tune="fast", device="cpu").path
    rows = {row[1]: row for row in clocks.measure(folder, Asked(1, 16, 48), 150)}
    assert float(rows["executor"][3].removesuffix(" %")) < 1.0, rows


def test_a_step_in_int8_is_predicted_within_a_fifth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The median of three: other processes come and go."""
    wide = build(SHAPE, tmp_path / "wide", tune="fast", device="cpu").path
    narrow = build(SHAPE, tmp_path / "narrow", tune="fast", device="cpu", weights="int8").path
    errors = []
    for _ in range(ROUNDS):
        assert main(["explain", str(wide), "--predict", "int8", "--json", "--quiet"]) == 0
        capsys.readouterr()
        assert main(["explain", str(narrow), "--against", str(wide / "explain.json"), "--json", "--quiet"]) == 0
        errors.append(json.loads(capsys.readouterr().out)["scored"]["rows"]["step_ms"]["error"])
    assert abs(statistics.median(errors)) < 0.2, errors
