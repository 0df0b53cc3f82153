"""Which activation buffers can lie in the same memory: those of which never two are needed at once."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import TOKENS, Call, Plan


def regions(plan: Plan) -> Mapping[str, int]:
    """For each buffer that is no part of another the number of its region: the widest ones first, each where it fits.

    Only those with a row for each token share: what has a row for each request is small, and read when all is over.
    """
    whole = [name for name, spec in plan.buffers.items() if spec.of is None]
    apart = _conflicts(plan)
    members: list[list[str]] = []
    for name in sorted(whole, key=lambda name: -plan.buffers[name].width):
        for region in members:
            alike = {plan.buffers[name].rows, plan.buffers[region[0]].rows} == {TOKENS}
            if alike and apart[name].isdisjoint(region):
                region.append(name)
                break
        else:
            members.append([name])
    return {name: number for number, region in enumerate(members) for name in region}


def bytes_of(plan: Plan, rows: Mapping[str, int], item: int = 4) -> int:
    """What all regions take for so many rows of each kind."""
    sizes: dict[int, int] = {}
    for name, number in regions(plan).items():
        spec = plan.buffers[name]
        sizes[number] = max(sizes.get(number, 0), item * spec.width * rows[spec.rows])
    return sum(sizes.values())


def _conflicts(plan: Plan) -> Mapping[str, set[str]]:
    """For each buffer those that hold something, or are being written, while it does or is."""
    found: dict[str, set[str]] = {name: set() for name in plan.buffers}
    wanted: set[str] = set()  # by a later call, walking from the last to the first
    for call in reversed(plan.calls):
        reads, writes = _buffers(plan, call.ins), _buffers(plan, call.outs)
        held = wanted | reads | writes
        for name in held:
            found[name] |= held - {name}
        wanted = (wanted - _overwritten(call)) | reads
    for name in wanted:  # read before anything was written: nobody may write there
        found[name] |= plan.buffers.keys() - {name}
        for other in plan.buffers.keys() - {name}:
            found[other].add(name)
    return found


def _overwritten(call: Call) -> set[str]:
    """What it writes as a whole; a part leaves the rest as it is."""
    return {plans.name(slot) for slot in call.outs.values() if plans.kind(slot) == "b"}


def _buffers(plan: Plan, slots: Mapping[str, str]) -> set[str]:
    """The buffers behind these slots, parts of others standing for those."""
    names = {plans.name(slot) for slot in slots.values() if plans.kind(slot) == "b"}
    while parts := {name for name in names if plan.buffers[name].of is not None}:
        names = names - parts | {str(plan.buffers[name].of) for name in parts}
    return names
