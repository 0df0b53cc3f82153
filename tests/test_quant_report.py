"""The error facts of a weight against figures worked out by hand or by theory."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from allotrope.errors import UsageError
from allotrope.quant.formats import Format, Quantised, Store
from allotrope.quant.report import measure, measure_store, outliers, total
from allotrope.quant.rounding import round_to_nearest

INT8, INT4 = Format("int8"), Format("int4", 32)


def stored(codes: list[list[int]], scale: float) -> Quantised:
    return Quantised(INT8, torch.tensor(codes, dtype=torch.int8), torch.full((len(codes), 1), scale))


def test_figures_worked_out_by_hand() -> None:
    found = measure("w", torch.tensor([[3.0, 4.0], [0.0, 0.0]]), stored([[6, 6], [0, 2]], 0.5))  # 3 3 · 0 1
    assert (found.signal, found.noise, found.max_abs, found.weights) == (25.0, 2.0, 1.0, 4)
    assert found.relative == pytest.approx(math.sqrt(2) / 5)
    assert found.sqnr_db == pytest.approx(10 * math.log10(12.5))
    assert found.cosine == pytest.approx(21 / (5 * math.sqrt(19)))
    assert found.nbytes == 4 + 2 * 4


def test_uniform_noise_has_the_textbook_ratio() -> None:
    """Uniform weights over b bits' levels: 20·log10(levels) decibels, as every signal-processing text derives."""
    weight = torch.rand(64, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = measure("w", weight, round_to_nearest(weight, INT8, "w"))
    assert found.sqnr_db == pytest.approx(20 * math.log10(254), abs=0.15)


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(33, 64, generator=torch.Generator().manual_seed(0))
    for form in (INT4, Format("int4", 32, symmetric=False)):
        rounded = round_to_nearest(weight, form, "w")
        whole = measure("w", weight, rounded)
        with monkeypatch.context() as patch:
            patch.setattr("allotrope.quant.rounding._BLOCK", 5 * 64)
            parts = measure("w", weight, rounded)
        assert parts.noise == pytest.approx(whole.noise, rel=1e-12)
        assert parts.cosine == pytest.approx(whole.cosine, rel=1e-12)
        assert parts.max_abs == whole.max_abs


def test_outlier_channels_are_named() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 0.02
    assert measure("w", weight, round_to_nearest(weight, INT8, "w")).outliers == ()
    weight[:, 7] *= 50
    weight[3, 90] = -2.0
    assert measure("w", weight, round_to_nearest(weight, INT8, "w")).outliers == (7, 90)


def test_dead_channels_make_no_outliers_of_the_others() -> None:
    peaks = torch.ones(10)
    peaks[:7] = 0
    assert outliers(peaks) == ()
    peaks[8] = 6.5
    assert outliers(peaks) == (8,)
    assert outliers(torch.zeros(4)) == ()


def test_an_exact_weight_and_a_weight_of_zeros() -> None:
    exact = measure("w", torch.tensor([[1.0, 2.0]]), stored([[1, 2]], 1.0))
    assert (exact.relative, exact.sqnr_db, exact.cosine) == (0.0, None, pytest.approx(1.0))
    nothing = measure("w", torch.zeros(1, 2), stored([[0, 0]], 1.0))
    assert (nothing.relative, nothing.sqnr_db, nothing.cosine) == (0.0, None, 1.0)
    wrong = measure("w", torch.zeros(1, 2), stored([[1, 0]], 1.0))
    assert (wrong.relative, wrong.sqnr_db, wrong.cosine) == (math.inf, -math.inf, 0.0)
    lost = measure("w", torch.tensor([[1.0, 2.0]]), stored([[0, 0]], 1.0))
    assert (lost.relative, lost.sqnr_db, lost.cosine) == (1.0, 0.0, 0.0)


def test_the_total_takes_all_weights_as_one() -> None:
    one = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    two = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)) * 3
    parts = [measure("w", weight, round_to_nearest(weight, INT4, "w")) for weight in (one, two)]
    both = torch.cat((one, two))
    whole = measure("w", both, round_to_nearest(both, INT4, "w"))
    found = total(parts)
    assert (found.relative, found.sqnr_db) == (pytest.approx(whole.relative), pytest.approx(whole.sqnr_db))
    assert found.bits_per_weight == 4.5


def test_json_holds_every_figure_and_no_infinity() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 5] *= 99
    row = measure("blocks.0.up", weight, round_to_nearest(weight, INT4, "w"))
    said = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert said["path"] == "blocks.0.up"
    assert said["format"] == "int4 in groups of 32"
    assert said["outliers"] == [5]
    assert (said["relative"], said["sqnr_db"], said["cosine"]) == (row.relative, row.sqnr_db, row.cosine)
    broken = measure("w", torch.zeros(1, 2), stored([[1, 0]], 1.0))
    assert broken.to_json()["relative"] is broken.to_json()["sqnr_db"] is None
    json.dumps(total([broken]).to_json(), allow_nan=False)
    assert total([row]).to_json()["sqnr_db"] == row.sqnr_db


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UsageError, match=re.escape("up: its shape is (2, 2); what stands for it is (1, 2)")):
        measure("up", torch.zeros(2, 2), stored([[1, 0]], 1.0))
    with pytest.raises(UsageError, match="no weight was quantised, so there is no error to add up"):
        total([])


def test_a_weight_kept_in_16_bits_errs_by_its_rounding() -> None:
    """Against the definition, in plain Python; what 16 bits hold exactly has no noise."""
    weight = torch.tensor([[1.0, 1 + 2**-12, -3.0], [0.0, 1 / 3, 2.0]], dtype=torch.float64).float()
    stored = weight.half()
    found = measure_store("blocks.0.mlp.up", weight, stored, Store("fp16"))
    errors = [float(a) - float(b) for a, b in zip(stored.flatten(), weight.flatten(), strict=True)]
    assert found.noise == pytest.approx(sum(error**2 for error in errors), rel=1e-12) and found.noise > 0
    assert found.max_abs == max(map(abs, errors)) and found.nbytes == 12 and found.format == "fp16"
    exact = measure_store("a", stored.float(), stored, Store("fp16"))
    assert exact.noise == 0 and exact.sqnr_db is None and exact.cosine == 1.0
