"""What the pages say: examples run, and names exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.engines import LLAMA, plan_of, random_weights, write

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\([\w, ]*\))?")


def examples(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(examples("README.md"))))
def test_the_readmes_python_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "engine", plan_of(LLAMA), random_weights(LLAMA))
    monkeypatch.chdir(tmp_path)
    exec(compile(examples("README.md")[number], f"README.md, example {number}", "exec"), {"__name__": "__main__"})


@cache
def words() -> frozenset[str]:
    """Every word of the package's sources."""
    return frozenset(w for path in (ROOT / "allotrope").rglob("*.py") for w in re.findall(r"\w+", path.read_text()))


def names(page: Path) -> Iterator[str]:
    """What stands in backticks and reads as a name of ours: a function, a class, a field, an option."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    yield from (quoted for quoted in re.findall(r"`([^`\n]+)`", text) if NAME.fullmatch(quoted) or quoted[:2] == "--")


@pytest.mark.parametrize("page", ["docs/tour.md", "docs/numerics.md"])
def test_names_in_the_docs_exist(page: str) -> None:
    found = set(names(ROOT / page))
    assert len(found) > 5
    missing = {
        name for name in found if not set(re.findall(r"[A-Za-z_]\w*", name.lstrip("-").replace("-", "_"))) <= words()
    }
    assert not missing
