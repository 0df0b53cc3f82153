"""Writing an engine where the disk, another build or the user stands in the way."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from allotrope.artifact import atomic
from allotrope.artifact.engine import open_engine
from allotrope.artifact.writer import writing
from allotrope.errors import AllotropeError, BuildError
from tests import engine_kit


def version(path: Path) -> str:
    return open_engine(path, check_digests=True).manifest.version


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, at: int, code: int) -> Iterator[list[str]]:
    """The `at`-th write, sync or rename fails with `code`; yields the list of what was attempted."""
    seen: list[str] = []

    def wrap(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            seen.append(name)
            if len(seen) == at:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", wrap("write", os.write))
        patch.setattr(os, "fsync", wrap("fsync", os.fsync))
        patch.setattr(Path, "mkdir", wrap("mkdir", Path.mkdir))
        patch.setattr(Path, "rename", wrap("rename", Path.rename))
        patch.setattr(atomic, "_exchange", wrap("exchange", atomic._exchange))
        yield seen


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_failing_disk_leaves_the_old_engine_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, replacing: bool
) -> None:
    target = tmp_path / "e"
    with failing(monkeypatch, 0, code) as seen:
        engine_kit.write(target, version="old")
    points = len(seen)
    assert points > 30
    for at in range(1, points + 1):
        if not replacing and target.exists():
            shutil.rmtree(target)
        with pytest.raises(BuildError) as caught, failing(monkeypatch, at, code) as seen:
            engine_kit.write(target, version="new")
        assert os.strerror(code) in str(caught.value) and "\n" not in str(caught.value)
        assert str(target) in str(caught.value)
        done = at == points  # the last point syncs the parent: both engines are whole, the new one stands
        assert [path.name for path in tmp_path.iterdir()] == (["e"] if replacing or done else [])
        if replacing and not done:
            assert version(target) == "old"
    engine_kit.write(target, version="new")
    assert version(target) == "new"


def test_a_short_write_is_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[: max(1, len(data) // 3)]))
    engine_kit.write(tmp_path / "e")
    open_engine(tmp_path / "e", check_digests=True)


def test_a_folder_that_is_no_engine_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(BuildError, match="exists and is not an engine; choose another folder"):
        engine_kit.write(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text(encoding="utf-8") == "years of work"
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(BuildError, match="exists and is not an engine"):
        engine_kit.write(tmp_path / "file")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BuildError, match="symbolic link"):
        engine_kit.write(tmp_path / "link")
    engine_kit.write(tmp_path / "real")  # an empty folder may become an engine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "real", "thesis"]


def test_two_builds_of_one_target(tmp_path: Path) -> None:
    """One wins, the other is told by whom; afterwards nothing is left of the lock."""
    target = tmp_path / "e"
    code = (
        "import sys, time; from pathlib import Path; from allotrope.artifact import atomic\n"
        f"with atomic.folder(Path({str(target)!r}), replaces='engine.json'):\n"
        "    print('held', flush=True); sys.stdin.read(); raise SystemExit"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BuildError, match=rf"another build \(pid {other.pid}\) is writing it"):
            engine_kit.write(target)
        engine_kit.write(tmp_path / "other")  # another target is free
        other.stdin.close()
    engine_kit.write(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "other"]


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    target = tmp_path / "e"
    code = (
        "import os, signal; from pathlib import Path; from allotrope.artifact import atomic\n"
        f"with atomic.folder(Path({str(target)!r}), replaces='engine.json') as temporary:\n"
        "    (temporary / 'junk').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2 and ".e.lock" in left and not target.exists()
    started = time.monotonic()
    engine_kit.write(target)
    assert time.monotonic() - started < 5
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_cleaning_spares_what_belongs_to_others(tmp_path: Path) -> None:
    """Only temporary folders of this very target go."""
    others = [".e.tmp-1-deadbeef.tmp-2-deadbeef", ".e.tmp-notes", ".ee.tmp-1-deadbeef", "e.tmp-1-deadbeef"]
    for name in (*others, ".e.tmp-1-deadbeef"):
        (tmp_path / name).mkdir()
    engine_kit.write(tmp_path / "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "e"])


def test_without_an_atomic_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that cannot swap names: killed between two renames, the next build finds the old engine."""
    target = tmp_path / "e"
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    engine_kit.write(target, version="1")
    engine_kit.write(target, version="2")
    assert version(target) == "2" and [path.name for path in tmp_path.iterdir()] == ["e"]
    target.rename(tmp_path / ".e.old-1-deadbeef")  # as a kill between the renames leaves it
    with pytest.raises(RuntimeError), writing(target):
        assert version(target) == "2"
        raise RuntimeError("this build fails")
    assert version(target) == "2" and [path.name for path in tmp_path.iterdir()] == ["e"]


def test_leaving_early_and_interrupting(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="left before it was finished"), writing(tmp_path / "e"):
        pass
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "e"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["with space", "ünïcødé-模型", "n" * 200, "-o", "..."])
def test_odd_names_work(tmp_path: Path, name: str) -> None:
    engine_kit.write(tmp_path / "deep er" / name)
    engine_kit.write(tmp_path / "deep er" / name, version="again")
    assert version(tmp_path / "deep er" / name) == "again"
    assert [path.name for path in (tmp_path / "deep er").iterdir()] == [name]


def test_impossible_names_are_said_in_words(tmp_path: Path) -> None:
    for name in ("n" * 300, "a\0b", ".."):
        with pytest.raises(AllotropeError) as caught:
            engine_kit.write(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="cannot be written"):
        engine_kit.write(tmp_path / "file" / "e")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BuildError, match="Permission denied"):
        engine_kit.write(tmp_path / "locked" / "e")
