"""How many threads: affinity masks and control groups' quotas, as this machine and made-up ones have them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from allotrope import cli, native
from allotrope.hw import cores
from allotrope.hw.cores import Cores


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


def proc(tmp_path: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A /proc whose mounts lie below `tmp_path` (`%` in `mounts`), and the control groups' files."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    (tmp_path / "proc" / "self" / "mountinfo").write_text(mounts.replace("%", str(tmp_path)))
    return tmp_path / "proc"


V2 = "30 23 0:26 / %/fs rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "30 23 0:26 / %/cpu rw - cgroup cgroup rw,cpu,cpuacct\n31 23 0:27 / %/memory rw - cgroup cgroup rw,memory\n"
INSIDE = "30 23 0:26 /docker/c1 %/cpu rw - cgroup cgroup rw,cpu\n"  # the container's group is what is mounted


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "count", "why"),
    [
        ("0::/\n", V2, {}, 4, "all 4 cores"),
        ("0::/\n", V2, {"fs/cpu.max": "250000 100000\n"}, 2, "a quota of 2.5 cores, %/fs/cpu.max"),
        ("0::/a/b\n", V2, {"fs/a/cpu.max": "150000 100000", "fs/a/b/cpu.max": "max 100000"}, 1,
         "a quota of 1.5 cores, %/fs/a/cpu.max"),
        ("0::/a/b\n", V2, {"fs/a/cpu.max": "300000 100000", "fs/a/b/cpu.max": "20000 100000"}, 1,
         "a quota of 0.2 cores, %/fs/a/b/cpu.max"),
        ("0::/\n", V2, {"fs/cpu.max": "900000 100000"}, 4, "all 4 cores"),
        ("0::/../other\n", V2, {"fs/cpu.max": "100000 100000"}, 1, "a quota of 1 core, %/fs/cpu.max"),
        ("3:memory:/m\n2:cpu,cpuacct:/s\n0::/\n", V1,
         {"cpu/s/cpu.cfs_quota_us": "300000\n", "cpu/s/cpu.cfs_period_us": "100000\n"}, 3,
         "a quota of 3 cores, %/cpu/s/cpu.cfs_quota_us"),
        ("2:cpu:/\n", V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4, "all 4 cores"),
        ("2:cpu:/docker/c1\n", INSIDE, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2,
         "a quota of 2 cores, %/cpu/cpu.cfs_quota_us"),
        ("nonsense\n0::\n", "nonsense\n - cgroup2\n" + V2, {"fs/cpu.max": "what is this"}, 4, "all 4 cores"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("four")
def test_the_tightest_quota_counts(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], count: int, why: str
) -> None:
    assert cores.usable(proc(tmp_path, groups, mounts, files)) == Cores(count, why.replace("%", str(tmp_path)))


@pytest.mark.usefixtures("four")
def test_masks_and_systems_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.usable(tmp_path / "none") == Cores(4, "all 4 cores")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2})
    assert cores.usable(tmp_path / "none") == Cores(1, "the affinity mask has 1 of 4 cores")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert cores.usable(tmp_path / "none") == Cores(1, "the only core")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("ALLOTROPE_THREADS", raising=False)
    before = native.threads()
    native._TEAM.count = 0
    yield
    native.set_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
@pytest.mark.skipif(native.find().core is None, reason=str(native.why_not()))
def test_a_process_of_one_core_has_one_thread_and_doctor_says_why(
    unset: None, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    try:
        assert cli.main(["doctor", "--device", "cpu"]) == 0
    finally:
        os.sched_setaffinity(0, mask)
    told = " ".join(capsys.readouterr().out.split())
    why = "the only core" if os.cpu_count() == 1 else f"the affinity mask has 1 of {os.cpu_count()} cores"
    assert f"1 thread: {why}" in told


def test_what_was_asked_for_says_so(unset: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOTROPE_THREADS", "3")
    assert (native.threads(), native.why_threads()) == (3, "ALLOTROPE_THREADS asks for it")
    native.set_threads(2)
    assert (native.threads(), native.why_threads()) == (2, "2 were asked for")
    native.set_threads(1000)
    assert (native.threads(), native.why_threads()) == (64, "1000 were asked for, and the native core takes no more")
