"""Which activation buffers can lie in the same memory: those of which never two are needed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from allotrope.artifact.plan import TOKENS, Call, Plan
from allotrope.runtime.joints import Asks, Joint, Work, work


def _none(call: Call) -> bool:
    return False


def regions(plan: Plan, together: Mapping[str, Joint] | None = None, by_rows: Asks = _none) -> Mapping[str, int]:
    """For each buffer that is no part of another the number of its region: the widest ones first, each where it fits.

    Only those with a row for each token share: what has a row for each request is small, and read when all is over.
    Calls `by_rows` are those that threads may compute apart.
    """
    steps = list(work(plan, together or {}, by_rows))
    whole = [name for name, spec in plan.buffers.items() if spec.of is None]
    apart = _conflicts(whole, steps)
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


def bytes_of(plan: Plan, rows: Mapping[str, int], regions: Mapping[str, int], item: int = 4) -> int:
    """What all regions take for so many rows of each kind."""
    sizes: dict[int, int] = {}
    for name, number in regions.items():
        spec = plan.buffers[name]
        sizes[number] = max(sizes.get(number, 0), item * spec.width * rows[spec.rows])
    return sum(sizes.values())


def _conflicts(whole: Sequence[str], steps: Sequence[Work]) -> Mapping[str, set[str]]:
    """For each buffer those that hold something, or are being written, while it does or is."""
    found: dict[str, set[str]] = {name: set() for name in whole}
    lingering = _lingering(steps)
    wanted: set[str] = set()  # by a later step, walking from the last to the first
    for step, read in zip(reversed(steps), reversed(lingering), strict=True):
        held = wanted | step.reads | step.writes | read
        for name in held:
            found[name] |= held - {name}
        wanted = (wanted - step.whole) | step.reads
    for name in wanted:  # read before anything was written: nobody may write there
        found[name] |= found.keys() - {name}
        for other in found.keys() - {name}:
            found[other].add(name)
    return found


def _lingering(steps: Sequence[Work]) -> list[set[str]]:
    """For each step what some thread may still read for itself, since all met last."""
    found, read = [], set[str]()
    for step in steps:
        found.append(read)
        read = read | step.reads if step.apart else set()
    return found
