"""The walk: where does the engine begin to differ from the original, block by block and op by op?

For each part three values of the same quantity, from the same exact input rounded to the engine's dtype:

    truth    the original in a finer precision
    engine   recorded by the tap, after which the truth's value is put in its place
    floor    the original in the engine's own dtype

so that no part answers for what others did. A plain run beside it shows how errors add up.

Where the engine rounds activations, keys or values to codes, both sides are given the same values in front of that,
too: otherwise a last bit would move a code, and a code is no small error. What lies between two such places within a
block is the ops' to answer for, and all of them are then looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from allotrope.artifact.plan import Call, Plan
from allotrope.ops import check
from allotrope.ops.kv_codes import fake
from allotrope.verify.drive import Driver, Others, block_ends
from allotrope.verify.oracle import DTYPES, LOGITS, ROTATION, Oracle, Values
from allotrope.verify.places import HEAD, Place, Places, block_probes
from allotrope.verify.quantisers import Quantisers
from allotrope.verify.records import BlockRow, Located, OpRow

Sequences = Sequence[Sequence[int]]
Taken = dict[str, torch.Tensor]


def walk_blocks(
    driver: Driver,
    plan: Plan,
    truth: Oracle,
    same: Oracle,
    sequences: Sequences,
    plain: Values,
    quantisers: Quantisers,
) -> tuple[BlockRow, ...]:
    """One row per block. `plain` are the truth's values of an undisturbed walk over the same sequences."""
    probes = block_probes(truth) | quantisers.probes
    stepped = truth.walk(sequences, probes, round_to=same.dtype)
    given = {probe: stepped[probe].to(same.dtype) for probe in probes}
    floors = same.walk(sequences, probes, given=given)
    alone = _record_blocks(driver, plan, sequences, {}, quantisers)
    injected = _record_blocks(driver, plan, sequences, given, quantisers)
    rows = list[BlockRow]()
    for block in alone:
        key = LOGITS if block == HEAD else block
        own, floor = check.compare(injected[block], stepped[key]), check.compare(floors[key], stepped[key])
        rows.append(
            BlockRow(
                block=block,
                total=check.compare(alone[block], plain[key]),
                inherited=rows[-1].total if rows else None,
                injected=own,
                floor=floor,
                complaint=check.within(own, floor, same.precision),
            )
        )
    return tuple(rows)


def _record_blocks(
    driver: Driver, plan: Plan, sequences: Sequences, given: Mapping[str, torch.Tensor], quantisers: Quantisers
) -> Taken:
    """The residual stream after each block, and the logits; `given` replaces it before the next block runs."""
    ends = {path: (block, result) for block, (path, result) in block_ends(plan).items()}
    taken: Taken = {}

    def visit(call: Call, outs: Mapping[str, torch.Tensor], index: torch.Tensor) -> Others:
        again = None
        if call.path in ends:
            block, result = ends[call.path]
            stream = outs[result]
            _take(taken, block, stream, index, sequences)
            if block in given:
                stream.copy_(given[block].to(stream.device)[index])
                # The norm fused to a block's last sum belongs to the next block: it must see what that is given.
                # Where blocks end with a norm, what it gives is the block's result, and nothing comes after it.
                fused = call.op == "add_norm" and result == "out"
                again = {"x": torch.zeros_like(stream), "residual": stream} if fused else None
        if given and quantisers.give(call, outs, given, index):
            return None  # the norm's own result is what is given
        return again

    logits = driver.walk(sequences, visit)
    return {block: taken[block] for block, _ in ends.values()} | {HEAD: logits}


def walk_ops(
    driver: Driver, places: Places, truth: Oracle, same: Oracle, sequences: Sequences, quantisers: Quantisers
) -> tuple[OpRow, ...]:
    """One row per op (per part of a fused one) of the blocks that `places` covers, in the plan's order."""
    probes = {**quantisers.probes, **places.probes}
    stepped = truth.walk(sequences, probes, round_to=same.dtype)
    given = {probe: stepped[probe].to(same.dtype) for probe in probes if probe != ROTATION}
    floors = same.walk(sequences, probes, given=given)
    expected = {place.path: place.of_oracle(stepped, same.dtype) for place in places}
    expected |= {place.path: given[probe] for place in places if (probe := quantisers.cached(place)) is not None}
    taken: Taken = {}

    def visit(call: Call, outs: Mapping[str, torch.Tensor], index: torch.Tensor) -> None:
        for place in places.by_call.get(call.path, ()):
            out = place.of_engine(outs, driver.cache_rows)
            _take(taken, place.path, out, index, sequences)
            if place.cache is None:
                out.copy_(expected[place.path].to(out.device)[index])
        quantisers.give(call, outs, given, index)

    driver.walk(sequences, visit)
    return tuple(
        _op_row(place, taken[place.path], expected[place.path], _floor(place, floors, given), same.precision)
        for place in places
        if place.path in taken
    )


def record_inputs(driver: Driver, quantisers: Quantisers, sequences: Sequences, device: str) -> Taken:
    """What an engine left to itself gives its quantisers to read."""
    taken = quantisers.room(sequences, device)
    driver.walk(sequences, lambda call, outs, index: quantisers.take(call, outs, taken, index))
    return taken


def _floor(place: Place, floors: Values, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The original in the engine's dtype; a rotation starts from the value that was put at its input."""
    if place.rotated_heads is None:
        return place.of_oracle(floors)
    return place.of_oracle({**given, ROTATION: floors[ROTATION]})


def _op_row(
    place: Place,
    actual: torch.Tensor,
    expected: torch.Tensor,
    floor: torch.Tensor,
    precision: str,
) -> OpRow:
    if place.cache is not None:  # equal to what was put at its input, or to what that means when it is coded
        expected = floor = fake(expected.to(DTYPES[precision]).to(actual.dtype), place.heads, place.form)
    error, base = check.compare(actual, expected), check.compare(floor, expected)
    return OpRow(place.path, place.op, place.block, error, base, check.within(error, base, precision))


def _take(taken: Taken, key: str, value: torch.Tensor, index: torch.Tensor, sequences: Sequences) -> None:
    """Keep a copy of the rows at `index`; what no step reaches stays NaN and is found out."""
    if key not in taken:
        rows = sum(len(ids) for ids in sequences)
        taken[key] = torch.full((rows, value.shape[1]), torch.nan, dtype=value.dtype, device=value.device)
    taken[key][index] = value


def first_wrong(rows: Sequence[BlockRow], ops: Sequence[OpRow]) -> Located | None:
    """The first op that is wrong or, where all ops seen are right, the first block."""
    for op in ops:
        if op.complaint is not None:
            return Located(op.block, op.op, op.path, op.complaint)
    for row in rows:
        if row.complaint is not None:
            return Located(row.block, "", row.block, row.complaint)
    return None


def accused(rows: Sequence[BlockRow]) -> tuple[str, ...]:
    """The blocks that inject more than their floor explains."""
    return tuple(row.block for row in rows if row.complaint is not None)
