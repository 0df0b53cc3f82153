"""How many cores' worth of time this process may use: its affinity mask, and the quotas of its control groups.

A quota is not an affinity mask: a container that may use 1.5 CPUs' worth of time sees all the host's cores. Threads
beyond it buy nothing, and all of them stand still when it is used up, so the whole cores in it are what counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")


@dataclass(frozen=True)
class Cores:
    """How many, and what says so."""

    count: int
    why: str


def usable(proc: Path = _PROC) -> Cores:
    """The cores that this process may use, at least one."""
    present = os.cpu_count() or 1
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    found = Cores(mask, f"the affinity mask has {mask} of {present} cores")
    if mask >= present:
        found = Cores(present, "the only core" if present == 1 else f"all {present} cores")
    file, allowed = min(_quotas(proc), key=lambda one: one[1], default=(proc, float(mask)))
    if allowed >= mask:
        return found
    return Cores(max(int(allowed), 1), f"a quota of {allowed:.3g} core{'s'[: allowed != 1]}, {file}")


def _quotas(proc: Path) -> Iterator[tuple[Path, float]]:
    """Every quota on this process, in cores, with the file that sets it."""
    for folder, version in _groups(proc):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        try:
            words = [word for name in names for word in (folder / name).read_text(encoding="ascii").split()]
        except (OSError, ValueError):
            continue  # the root has none, and neither has a hierarchy without this controller
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            yield folder / names[0], int(words[0]) / int(words[1])


def _groups(proc: Path) -> Iterator[tuple[Path, int]]:
    """The folders of this process's CPU control groups and of all above them, with their version.

    In a container with a namespace of its own the group's path is `/`, and in one without, the mount begins at
    the group and the path is the host's: then what is mounted is the group.
    """
    try:
        belongs = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "self" / "mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    paths: dict[int, str] = {}
    for line in belongs:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers or "cpu" in controllers.split(","):
            paths[1 if controllers else 2] = path
    for line in mounts:
        place, _, kind = line.partition(" - ")
        fields, system = place.split(), kind.split()
        if len(fields) < 5 or len(system) < 3:
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(system[0])
        if version is None or version not in paths or (version == 1 and "cpu" not in system[2].split(",")):
            continue
        top, group = Path(fields[4]), PurePosixPath(paths[version])
        below = group.relative_to(fields[3]) if group.is_relative_to(fields[3]) else PurePosixPath()
        if ".." in below.parts:
            below = PurePosixPath()
        for depth in range(len(below.parts) + 1):
            yield top.joinpath(*below.parts[:depth]), version
