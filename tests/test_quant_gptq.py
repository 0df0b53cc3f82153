"""GPTQ against a plain float64 implementation that inverts a matrix for every column, and against rounding."""

from __future__ import annotations

import re

import pytest
import torch

from allotrope.errors import NumericalError, UsageError
from allotrope.quant.formats import Format, Quantised, dequantise
from allotrope.quant.gptq import Hessian, gptq, prepare
from allotrope.quant.rounding import round_to_nearest

FORMS = (Format("int4", 32), Format("int4", 64, symmetric=False), Format("int4", 128), Format("int4"), Format("int8"))
WIDTH = 192  # more than one block of columns, and not a whole number of them


def weights(width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    return torch.randn(24, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.02


def correlated(count: int = 512, width: int = WIDTH, seed: int = 1) -> torch.Tensor:
    """Inputs that a few directions explain, as a network's are."""
    make = torch.Generator().manual_seed(seed)
    few = torch.randn(count, width // 6, generator=make, dtype=torch.float64)
    mixed = few @ torch.randn(width // 6, width, generator=make, dtype=torch.float64)
    return mixed + 0.3 * torch.randn(count, width, generator=make, dtype=torch.float64)


def hessian(inputs: torch.Tensor, dtype: torch.dtype = torch.float64) -> Hessian:
    found = Hessian(inputs.shape[1], "w", dtype)
    found.add(inputs)
    return found


def fitting(form: Format) -> int:
    return 256 if form.group == 128 else WIDTH


def plain(weight: torch.Tensor, matrix: torch.Tensor, form: Format, share: float, *, sort: bool) -> torch.Tensor:
    """GPTQ as the paper states it, column by column: each time, the inverse over the columns that remain."""
    weight, width = weight.clone(), weight.shape[1]
    size = form.group or width
    loud = matrix.diagonal().clone()
    matrix = matrix + torch.diag((loud == 0) * loud.mean()) + share * loud.mean() * torch.eye(width, dtype=matrix.dtype)
    columns = sorted(range(width), key=lambda c: -float(loud[c])) if sort else list(range(width))
    result = torch.zeros_like(weight)
    scales: dict[int, torch.Tensor] = {}
    zeros: dict[int, torch.Tensor] = {}

    def choose(group: int) -> None:
        part = weight[:, group * size : (group + 1) * size]
        stored = round_to_nearest(part, form, "part")
        scales[group] = stored.scales[:, 0].double()
        zeros[group] = torch.zeros(len(part)) if stored.zeros is None else stored.zeros[:, 0].double()

    if sort:
        for group in range(width // size):
            choose(group)
    low, high = form.range
    for step, column in enumerate(columns):
        group = column // size
        if group not in scales:
            choose(group)
        scale, zero = scales[group], zeros[group]
        result[:, column] = (((weight[:, column] / scale).round() + zero).clamp(low, high) - zero) * scale
        rest = columns[step:]
        inverse = torch.linalg.inv(matrix[rest][:, rest])
        error = (weight[:, column] - result[:, column]) / inverse[0, 0]
        weight[:, rest] -= error.unsqueeze(1) * inverse[0]
    return result


def output_error(inputs: torch.Tensor, weight: torch.Tensor, rounded: Quantised) -> float:
    exact = inputs @ weight.T
    return float(torch.linalg.norm(inputs @ dequantise(rounded, torch.float64).T - exact) / torch.linalg.norm(exact))


@pytest.mark.parametrize("sort", [False, True], ids=["in order", "sorted"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_equals_the_plain_implementation(form: Format, sort: bool) -> None:
    inputs, weight = correlated(width=fitting(form)), weights(fitting(form))
    inputs[:, 17] = 0  # a dead column
    inputs[:, 40] *= 9
    found = gptq(weight, prepare(hessian(inputs), sort=sort), form, "w")
    truth = plain(weight, inputs.T @ inputs, form, 0.01, sort=sort)
    assert float((dequantise(found, torch.float64) - truth).abs().max()) < 1e-6
    nearest = dequantise(round_to_nearest(weight, form, "w"), torch.float64)
    assert float((nearest - truth).abs().max()) > 1e-4  # so the agreement above says something


@pytest.mark.parametrize("form", [*FORMS, Format("fp8")], ids=str)
def test_the_output_is_nearer_than_by_rounding_to_nearest(form: Format) -> None:
    """On inputs that were not seen in calibration."""
    width = fitting(form)
    seen, unseen = correlated(768, width).split((512, 256))
    weight = weights(width)
    by_gptq = output_error(unseen, weight, gptq(weight, prepare(hessian(seen)), form, "w"))
    by_rounding = output_error(unseen, weight, round_to_nearest(weight, form, "w"))
    assert by_gptq < 0.6 * by_rounding


def test_sorting_helps_where_few_channels_are_loud() -> None:
    inputs = correlated()
    inputs[:, -8:] *= 30  # in the columns' own order the loudest come last, when nothing is left to make up for them
    weight, form = weights(), Format("int4", 32)
    errors = {
        sort: output_error(inputs, weight, gptq(weight, prepare(hessian(inputs), sort=sort), form, "w"))
        for sort in (False, True)
    }
    assert errors[True] < 0.6 * errors[False]


@pytest.mark.parametrize("sort", [False, True], ids=["in order", "sorted"])
def test_the_clipping_search_is_used(sort: bool) -> None:
    inputs, weight = torch.eye(WIDTH, dtype=torch.float64), weights()  # nothing correlates, so only the scales matter
    form, ready = Format("int4", 32), prepare(hessian(inputs), sort=sort)
    by_search = output_error(inputs, weight, gptq(weight, ready, form, "w", clip=True))
    assert by_search < 0.98 * output_error(inputs, weight, gptq(weight, ready, form, "w"))


def test_streamed_inputs_are_the_same_as_all_at_once() -> None:
    inputs = correlated(500)
    streamed = Hessian(WIDTH, "w")
    for part in inputs.split(77):
        streamed.add(part.view(-1, 1, WIDTH))
    assert streamed.count == 500
    whole = inputs.T @ inputs
    assert float((streamed.matrix - whole).abs().max() / whole.abs().max()) < 1e-14


def test_single_precision_serves() -> None:
    """Rounding decisions may differ, the output's error hardly."""
    inputs, weight, form = correlated(), weights(), Format("int4", 32)
    narrow = gptq(weight.float(), prepare(hessian(inputs.float(), torch.float32)), form, "w")
    wide = gptq(weight, prepare(hessian(inputs)), form, "w")
    assert output_error(inputs, weight, narrow) == pytest.approx(output_error(inputs, weight, wide), rel=0.05)


def test_dead_columns_are_rounded_to_nearest_and_counted() -> None:
    inputs, weight, form = correlated(), weights(), Format("int8")
    inputs[:, [3, 90]] = 0
    ready = prepare(hessian(inputs))
    assert ready.dead == 2
    found, nearest = gptq(weight, ready, form, "w"), round_to_nearest(weight, form, "w")
    assert torch.equal(found.codes[:, [3, 90]], nearest.codes[:, [3, 90]])
    assert not torch.equal(found.codes, nearest.codes)


def test_all_columns_dead_is_rounding_to_nearest() -> None:
    ready = prepare(hessian(torch.zeros(4, WIDTH, dtype=torch.float64)))
    weight, form = weights(), Format("int4", 32)
    assert torch.equal(gptq(weight, ready, form, "w").codes, round_to_nearest(weight, form, "w").codes)


def test_fewer_inputs_than_columns_are_enough() -> None:
    """A singular H is what damping is for."""
    inputs, weight, form = correlated(20), weights(), Format("int4", 32)
    ready = prepare(hessian(inputs))
    assert ready.note is None
    assert ready.damping == 0.01
    by_rounding = output_error(inputs, weight, round_to_nearest(weight, form, "w"))
    assert output_error(inputs, weight, gptq(weight, ready, form, "w")) < 0.4 * by_rounding


def test_more_damping_is_taken_where_needed_and_told() -> None:
    found = hessian(correlated())
    found.matrix -= (
        0.05 * found.matrix.diagonal().mean() * torch.eye(WIDTH)
    )  # as rounding does to a nearly singular one
    ready = prepare(found)
    assert ready.damping == 0.1
    assert ready.note == "damping 0.01 was too little for Cholesky; it took 0.1"
    damped = found.matrix + 0.1 * found.matrix.diagonal().mean() * torch.eye(WIDTH)
    assert float((torch.linalg.inv(damped) - ready.upper.T @ ready.upper).abs().max()) < 1e-9


def test_what_no_damping_mends_is_refused() -> None:
    found = hessian(correlated())
    found.path = "blocks.1.mlp.down"
    found.matrix[0, 1] = found.matrix[1, 0] = 1e9
    words = (
        "blocks.1.mlp.down: the inputs' products are not positive definite, even with damping 1; "
        "calibrate on more text, or round this weight to nearest"
    )
    with pytest.raises(NumericalError, match=re.escape(words)):
        prepare(found)


@pytest.mark.parametrize("damping", [0.0, -0.1, 1.5, float("nan")])
def test_a_damping_that_is_none_is_refused(damping: float) -> None:
    with pytest.raises(UsageError, match=re.escape(f"damping is {damping}; it must be above 0 and at most 1")):
        prepare(hessian(correlated(8)), damping=damping)


def test_inputs_that_cannot_be_are_refused() -> None:
    found = Hessian(64, "blocks.0.attn.o")
    with pytest.raises(UsageError, match=r"blocks\.0\.attn\.o: no inputs were seen; give a longer calibration text"):
        prepare(found)
    with pytest.raises(UsageError, match=r"blocks\.0\.attn\.o: the inputs are 63 wide; the weight reads 64"):
        found.add(torch.ones(3, 63))
    with pytest.raises(NumericalError, match=r"blocks\.0\.attn\.o: its inputs hold NaN or infinity; calibrate in a wi"):
        found.add(torch.full((3, 64), float("inf")))
    assert found.count == 0
    found.add(torch.ones(3, 64))
    with pytest.raises(UsageError, match="up: its width is 96; its inputs were 64 wide"):
        gptq(weights(96), prepare(found), Format("int4", 32), "up")
    with pytest.raises(NumericalError, match="up: the weight holds NaN or infinity"):
        gptq(torch.full((8, 64), float("nan")), prepare(found), Format("int4", 32), "up")


@pytest.mark.gpu
@pytest.mark.parametrize("sort", [False, True], ids=["in order", "sorted"])
@pytest.mark.parametrize("form", [*FORMS, Format("fp8")], ids=str)
def test_a_gpu_gives_the_codes_of_a_cpu(form: Format, sort: bool) -> None:
    """Columns are recorded there; a recording that is used again, for other weights, knows nothing of the first."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    width = fitting(form)
    ready = hessian(correlated(width=width))
    there = Hessian(width, "w", device="cuda")
    there.matrix.copy_(ready.matrix)
    there.count = ready.count
    for seed in (0, 3):
        weight = weights(width, seed)
        here = gptq(weight, prepare(ready, sort=sort), form, "w", clip=True)
        found = gptq(weight.cuda(), prepare(there, sort=sort), form, "w", clip=True).to("cpu")
        assert float((found.scales == here.scales).float().mean()) > 0.99
        same = found.codes.view(torch.uint8) == here.codes.view(torch.uint8)
        assert float(same.float().mean()) > 0.999  # a sum in another order may tip what lies half-way
