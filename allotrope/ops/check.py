"""The numerics policy: the only place with tolerances.

The truth is the op's reference in fp64, on inputs rounded to the problem's dtypes. With e₀ the error of
the plain torch version (the reference run in the compute dtype itself), a tactic passes if

    error ≤ 2·e₀ + tiny(dtype)

in the maximum and in RMS, both relative to the output's RMS. Where that fails by little, more inputs are drawn, and the
worst errors of all are compared: on one draw the plain version may have been lucky. Moving data is bit-exact, and so
are integers. An element that was not written, a NaN, a write outside the output and a read of poison
disqualify. A row class is proven by comparing bits (`check_rows`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import torch

from allotrope.hw.device import Device
from allotrope.ops import poison, registry
from allotrope.ops.contract import Array, Contract, Problem, Role
from allotrope.ops.tactic import Tactic

FACTOR = 2.0  # how much worse than the plain version a tactic may be
# Beside the factor, what luck may do: the plain version may round every element right, and a healthy tactic
# must still pass. One rounding step of a 16-bit format; in fp32, where a step is small beside any real
# mistake, eight: vectorised exp, erf and tanh are right only to an ulp or two, and sums in another order err anew.
_TINY = {"fp32": 8 * 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7, "fp64": 8 * 2.0**-52}
_NARROW, _REDRAWS = 4.0, 3  # within so many times what is allowed, so many more draws decide
_SUMS = 1e-9  # sums of 2²⁴ squares in fp64 differ by less, whatever their order
# Nats by which an engine may prefer its own token where another runtime's greedy text parts from its: what computing in
# another order, rounding in another place or another way onto as many bits can do to logits, by the bits of a weight.
PARTING = {"fp32": 0.1, "16": 0.3, "8": 1.0, "4": 3.0}
ROW_COUNTS = (1, 8, 64, 512)
_PROBES = 4


def tiny(dtype: str) -> float:
    """The error that chance alone may make, relative to the value it is made at."""
    return _TINY[dtype]


def same_sum(one: float, other: float) -> bool:
    """Whether two sums of the same squares in fp64, perhaps on two devices and in two orders, are the same."""
    return math.isclose(one, other, rel_tol=_SUMS)


def no_worse(error: float, recorded: float, dtype: str) -> bool:
    """Whether a relative error is what was recorded, given that one side was rounded to `dtype` before."""
    return error <= FACTOR * recorded + tiny(dtype)


@dataclass(frozen=True)
class ErrorStats:
    """How far `actual` is from the truth. `*_rel_rms` are relative to the truth's RMS."""

    max_abs: float
    mean_abs: float
    median_abs: float
    max_rel_rms: float
    rms_rel_rms: float
    peak: float  # the truth's largest magnitude, relative to its RMS

    @property
    def finite(self) -> bool:
        """Whether NaN or infinity appeared nowhere but where the truth has the same."""
        return math.isfinite(self.max_abs)


def compare(actual: Array, truth: Array) -> ErrorStats:
    """The error of `actual` against `truth`, tensors of one shape on any device."""
    right = truth.detach().double().flatten()
    wrong = actual.detach().to(right.device).double().flatten()
    same = (wrong == right) | (wrong.isnan() & right.isnan())  # equal infinities have no difference, not a NaN
    error = torch.where(same, torch.zeros_like(right), (wrong - right).abs()).nan_to_num(math.inf, math.inf, math.inf)
    if not error.numel():
        return ErrorStats(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    known = torch.where(right.isfinite(), right, torch.zeros_like(right))
    rms = float(known.square().mean().sqrt()) or 1.0
    worst = float(error.max())
    return ErrorStats(
        max_abs=worst,
        mean_abs=float(error.mean()),
        median_abs=float(error.median()),
        max_rel_rms=worst / rms,
        rms_rel_rms=float(error.square().mean().sqrt()) / rms,
        peak=max(1.0, float(known.abs().max()) / rms),
    )


def larger(one: ErrorStats, other: ErrorStats) -> ErrorStats:
    """The floor where there are two reasons to err: figure by figure the larger of both."""
    return ErrorStats(*(max(pair) for pair in zip(astuple(one), astuple(other), strict=True)))


def within(error: ErrorStats, floor: ErrorStats, dtype: str, slack: float = 1.0) -> str | None:
    """None if `error` is what `dtype` explains, given the plain version's error `floor`; otherwise a sentence."""
    if not error.finite:
        return "it gave NaN or infinity where the truth is finite"
    # the largest element's own rounding step scales with that element, hence `peak`
    for name, found, base, step in (
        ("RMS", error.rms_rel_rms, floor.rms_rel_rms, tiny(dtype)),
        ("maximum", error.max_rel_rms, floor.max_rel_rms, tiny(dtype) * error.peak),
    ):
        allowed = FACTOR * base + step
        if found > slack * allowed:
            return (
                f"its {name} error {found:.3g} exceeds {allowed:.3g} (2 · {base:.3g} + {step:.3g}), relative to the RMS"
            )
    return None


def choice_within(margin: float, plain: Array, truth: Array, dtype: str) -> bool:
    """Whether rounding explains that the lesser of two of `truth`'s elements, `margin` apart, was taken for the larger.

    Each of the two may have moved as far as `within` lets any element move, given the plain version's answer.
    """
    floor = compare(plain, truth)
    rms = float(truth.detach().double().square().mean().sqrt())
    return margin <= 2 * rms * (FACTOR * floor.max_rel_rms + tiny(dtype) * floor.peak)


@dataclass(frozen=True)
class CheckResult:
    """What a check found. `reason` is None when ok, otherwise a sentence."""

    ok: bool
    max_error: float
    rms_error: float
    e0_max: float
    e0_rms: float
    reason: str | None = None


@dataclass(frozen=True)
class Case:
    """One problem with inputs, truth and floor, for as many tactics as are to be checked on it."""

    contract: Contract
    problem: Problem
    device: Device
    ins: Mapping[str, Array]  # on the CPU, rounded to the problem's dtypes
    truth: Mapping[str, torch.Tensor]  # fp64, or as it came
    plain: Mapping[str, torch.Tensor]  # the reference computed in the compute dtype
    seed: int = 0


def rounded(contract: Contract, problem: Problem, ins: Mapping[str, Array]) -> dict[str, Array]:
    """`ins` as a tactic gets them: floats rounded to the operands' dtypes, everything else as it is."""
    return {
        name: value.to(poison.torch_dtype(contract.ins[name].dtype, problem.dtype))
        if isinstance(value, torch.Tensor)
        and contract.ins[name].role is not Role.HOST
        and contract.ins[name].dtype != "stored"
        and value.dtype != torch.uint8  # a narrow cache
        else value
        for name, value in ins.items()
    }


def prepare(problem: Problem, device: Device, seed: int) -> Case:
    """Make the inputs, the truth and the plain version's answer once."""
    contract = registry.contract(problem.op)
    ins = rounded(contract, problem, contract.make_inputs(problem, seed))
    params = contract.complete(problem.params)

    def referred(wide: bool) -> dict[str, torch.Tensor]:
        given = {}
        for name, value in ins.items():
            movable = isinstance(value, torch.Tensor) and contract.ins[name].role is not Role.HOST
            moved = value.to(device.torch_name) if movable else value
            given[name] = moved.double() if wide and movable and moved.is_floating_point() else moved
        return {name: value.cpu() for name, value in contract.reference(given, params).items()}

    plain = referred(wide=False)
    return Case(contract, problem, device, ins, plain if contract.exact else referred(wide=True), plain, seed)


def judge(case: Case, outs: Mapping[str, torch.Tensor]) -> CheckResult:
    """Hold outputs, fresh from poisoned memory, against the policy. Figures are the worst output's."""
    errors, floors, reason = [], [], None
    for name, operand in case.contract.outs.items():
        actual, truth, plain = outs[name], case.truth[name], case.plain[name]
        truth, plain = truth.reshape(actual.shape), plain.reshape(actual.shape)
        if not operand.inout and not case.contract.exact:
            reason = reason or _unwritten(name, actual, truth)
        errors.append(compare(actual, truth))
        floors.append(compare(plain, truth))
        if case.contract.exact or not actual.is_floating_point():
            differs = poison.bits(actual) != poison.bits(truth.to(actual.dtype))
            if not case.contract.exact:  # integers out of floats: the plain version's answer is as good
                differs &= poison.bits(actual) != poison.bits(plain.to(actual.dtype))
            if differs.any():
                reason = reason or f"{name}{differs.nonzero()[0].tolist()} is not what it must be, bit for bit"
        elif not floors[-1].finite:
            reason = reason or f"the plain {case.problem.dtype} version is not finite here: {name} cannot be judged"
        else:
            dtype = case.problem.dtype if operand.dtype == "compute" else operand.dtype
            complaint = within(errors[-1], floors[-1], dtype)
            reason = reason or (f"{name}: {complaint}" if complaint else None)
    return CheckResult(
        ok=reason is None,
        max_error=max(error.max_rel_rms for error in errors),
        rms_error=max(error.rms_rel_rms for error in errors),
        e0_max=max(floor.max_rel_rms for floor in floors),
        e0_rms=max(floor.rms_rel_rms for floor in floors),
        reason=reason,
    )


def check_case(tactic: Tactic, case: Case, *, strided: bool = True) -> CheckResult:
    """Run a tactic once on a prepared case, in poisoned memory, and judge it."""
    refusal = tactic.why_not(case.problem, case.device)
    if refusal:
        return CheckResult(False, math.inf, math.inf, 0.0, 0.0, f"it does not support this: {refusal}")
    result = poison.run(tactic, case.contract, case.problem, case.device, case.ins, strided)
    verdict = judge(case, result.outs)
    if result.complaint:
        return dataclasses.replace(verdict, ok=False, reason=result.complaint)
    if not verdict.ok and _excused(tactic, case, result.outs, strided):
        return dataclasses.replace(verdict, ok=True, reason=None)
    return verdict


def _excused(tactic: Tactic, case: Case, outs: Mapping[str, torch.Tensor], strided: bool) -> bool:
    """Whether a tactic that errs more than the plain version allows on one draw does not, on several."""
    worst = _accuracy(case, outs)
    if worst is None or any(within(e, f, d, _NARROW) for e, f, d in worst):
        return False
    for seed in range(case.seed + 1, case.seed + 1 + _REDRAWS):
        other = prepare(case.problem, case.device, seed)
        result = poison.run(tactic, other.contract, other.problem, other.device, other.ins, strided)
        found = None if result.complaint else _accuracy(other, result.outs)
        if found is None:
            return False
        worst = [(larger(e, a), larger(f, b), d) for (e, f, d), (a, b, _) in zip(worst, found, strict=True)]
    return not any(within(*one) for one in worst)


def _accuracy(case: Case, outs: Mapping[str, torch.Tensor]) -> list[tuple[ErrorStats, ErrorStats, str]] | None:
    """Each output's error, the plain version's and the dtype; None if anything but accuracy is to be judged."""
    found = []
    for name, operand in case.contract.outs.items():
        actual, truth, plain = outs[name], case.truth[name], case.plain[name]
        if case.contract.exact or not actual.is_floating_point():
            return None
        error, floor = compare(actual, truth.reshape(actual.shape)), compare(plain, truth)
        if not (error.finite and floor.finite):
            return None
        found.append((error, floor, case.problem.dtype if operand.dtype == "compute" else operand.dtype))
    return found


def check(tactic: Tactic, problem: Problem, device: Device, seed: int = 0) -> CheckResult:
    """Whether the tactic computes the problem right, on strided and on dense buffers; the worse of the two."""
    case = prepare(problem, device, seed)
    results = [check_case(tactic, case, strided=strided) for strided in (True, False)]
    return max(results, key=lambda result: (not result.ok, result.max_error))


def _unwritten(name: str, actual: torch.Tensor, truth: torch.Tensor) -> str | None:
    if actual.is_floating_point():
        left = actual.isnan() & ~truth.isnan()
        return f"{name}{left.nonzero()[0].tolist()} is NaN or was left unwritten" if left.any() else None
    left = poison.bits(actual) == poison.poison_of(actual.dtype)
    return f"{name}{left.nonzero()[0].tolist()} was left unwritten" if left.any() else None


@dataclass(frozen=True)
class RowCase:
    """One batch of a row-class proof. `probes` says at which output row each watched row stands.

    An op whose rows are not simply exchangeable (attention) defines `row_cases(problem, seed, counts)` in its
    `reference.py`, giving a sequence of these: a probe's bits must be the same in all cases that have it.
    """

    problem: Problem
    ins: Mapping[str, Array]  # as `make_inputs` gives them
    probes: Mapping[int, int]  # watched row → its row in the outputs


def check_rows(
    tactic: Tactic,
    problem: Problem,
    device: Device,
    seed: int = 0,
    *,
    among: Sequence[Tactic] = (),
    most: int = ROW_COUNTS[-1],
) -> str | None:
    """None if a row's bits depend on nothing but the row, otherwise what they depend on, as a sentence.

    Watched rows are run alone and among 8, 64 and 512, at several positions, with ordinary and with hostile
    (NaN, infinite, huge) neighbours, in dense and in strided buffers. With `among`, the other members of
    the tactic's row class must give the same bits, too. `most` rows at the most: fewer take less time, and
    prove less.
    """
    contract = registry.contract(problem.op)
    own = getattr(registry.reference_module(problem.op), "row_cases", None)
    counts = tuple(count for count in ROW_COUNTS if count <= most)
    cases: Sequence[RowCase] = own(problem, seed, counts) if own else _row_cases(contract, problem, seed, counts)
    expected: dict[tuple[int, str], torch.Tensor] = {}
    runs: dict[int, int] = defaultdict(int)
    for number, case in enumerate(cases):
        ins = rounded(contract, case.problem, case.ins)
        for member in (tactic, *among):
            if member.why_not(case.problem, device):
                continue
            result = poison.run(member, contract, case.problem, device, ins, strided=number % 2 == 1)
            rows = case.problem.axes.get(contract.rows, 0)
            if result.complaint:
                return f"among {rows} rows: {result.complaint}"
            for probe, row in case.probes.items():
                runs[probe] += 1
                for name, out in result.outs.items():
                    if contract.outs[name].inout:
                        continue
                    found = poison.bits(out[row])
                    if not torch.equal(found, expected.setdefault((probe, name), found)):
                        return (
                            f"{member.name}: a row of {name} has other bits at row {row} among {rows} rows than alone"
                        )
    if not runs or max(runs.values()) < 2:
        return f"{tactic.name} supports too few of these row counts to compare any"
    return None


def _row_cases(contract: Contract, problem: Problem, seed: int, counts: Sequence[int]) -> list[RowCase]:
    """The same few rows alone and among others, for an op whose rows can be exchanged freely."""

    def sized(rows: int) -> Problem:
        return dataclasses.replace(problem, axes={**problem.axes, contract.rows: rows})

    largest = max(counts)
    ins = contract.make_inputs(sized(largest), seed)
    by_row = [name for name in ins if contract.rows in contract.ins[name].axes[:1]]
    random = torch.Generator().manual_seed(seed)

    def taken(order: torch.Tensor, hostile: torch.Tensor | None = None) -> dict[str, Array]:
        batch = dict(ins)
        for name in by_row:
            batch[name] = ins[name][order].clone()
            if hostile is not None and batch[name].is_floating_point() and batch[name].dim() > 1:
                evil = torch.tensor([math.nan, math.inf, -math.inf, 6e4], dtype=batch[name].dtype)
                batch[name][hostile] = evil[torch.arange(len(hostile)) % 4][:, None]
        return batch

    watched = range(_PROBES)
    cases = [RowCase(sized(1), taken(torch.tensor([probe])), {probe: 0}) for probe in watched]
    for count in counts[1:]:
        for hostile in (False, True):
            places = torch.randperm(count, generator=random)[:_PROBES]
            order = torch.randint(_PROBES, largest, (count,), generator=random)
            order[places] = torch.arange(_PROBES)
            others = torch.tensor([row for row in range(count) if row not in places.tolist()])
            batch = taken(order, others if hostile else None)
            cases.append(RowCase(sized(count), batch, {probe: int(places[probe]) for probe in watched}))
            if not hostile:  # the same batch again, in the other kind of buffer
                cases.append(RowCase(sized(count), batch, {probe: int(places[probe]) for probe in watched}))
    return cases
