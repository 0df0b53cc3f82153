"""`allotrope report --markdown`: the same report for a repository, its plots as PNG."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import pytest

from allotrope.cli import main
from allotrope.errors import UsageError
from allotrope.report import pictures
from allotrope.report.escape import fenced
from tests import report_kit as kit
from tests import report_results as results

PLOTS = ("layers", "weights", "attribution", "speed", "roofline", "time", "ablation", "timeline", "rouge")


@pytest.fixture
def drawing() -> None:
    """Some machines have no font; then the command says so, which another test reads."""
    try:
        pictures.check()
    except UsageError as error:
        pytest.skip(str(error))


def made(tmp_path: Path, *engines: Path) -> str:
    out = ["-o", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "md")]
    assert main(["report", *map(str, engines), *out, "--quiet"]) == 0
    return (tmp_path / "md" / "report.md").read_text(encoding="utf-8")


def size(path: Path) -> tuple[int, int]:
    """A PNG's width and height."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.usefixtures("drawing")
def test_all_of_it_is_there(tmp_path: Path) -> None:
    text = made(tmp_path, kit.full(tmp_path / "engine"))
    assert text.startswith("# Close to the original, 3.1× as fast.\n")
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads[0] == "What was asked" and heads[-1] == "Answers side by side" and len(heads) == 13
    assert re.findall(r"\]\((.*?)\)", text) == [f"plots/{name}.png" for name in PLOTS]
    for name in PLOTS:
        path = tmp_path / "md" / "plots" / f"{name}.png"
        width, height = size(path)
        assert width == 2 * 736 and height > 150 and path.stat().st_size > 8000, name  # a blank one has 3,000 bytes
    assert text.count("<details>") == text.count("</details>") > 9 and "[!CAUTION]" not in text
    assert "<sub>`allotrope bench engine` · 29 Nov 2026, 15:05 UTC</sub>" in text
    assert "| ROUGE-1 | 31.20 | 31.60 | −0.42 | −1.6 to +0.8 | 0.51 | 1.9 |" in text


@pytest.mark.usefixtures("drawing")
def test_no_speed_without_a_verdict(tmp_path: Path) -> None:
    text = made(tmp_path, kit.full(tmp_path / "engine", {"verify": None}))
    assert text.count("> [!CAUTION]\n> Not verified: this may be the speed of another model.") == 4


@pytest.mark.usefixtures("drawing")
def test_several_engines_have_their_own_plots(tmp_path: Path) -> None:
    text = made(tmp_path, kit.full(tmp_path / "a"), kit.full(tmp_path / "b"))
    assert text.startswith("# 2 engines, all of them proven") and "plots/0-engines.png" in text
    assert "plots/1-layers.png" in text and "plots/2-layers.png" in text


@pytest.mark.usefixtures("drawing")
def test_foreign_text_stays_text(tmp_path: Path) -> None:
    summaries = results.summarize()
    evil = "````\n# [x](http://evil) <img src=x> | `y`\n\u202e"
    summaries["samples"][1] |= {"id": evil, "engine": evil}
    text = made(tmp_path, kit.full(tmp_path / "engine", {"summarize": summaries}))
    assert "\u202e" not in text and "`````text\n````\n# [x]" in text  # in a fence that it cannot end
    assert r"\# \[x\](http://evil) &lt;img src=x&gt; \| \`y\`" in text  # in a line
    assert not re.search(r"^# \[x", text.replace(fenced(evil), ""), re.MULTILINE)


def test_what_it_needs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kit.full(tmp_path / "engine")
    (tmp_path / "file").write_text("")
    asked = ["report", str(folder), "-o", str(tmp_path / "r.html"), "--markdown"]
    assert main([*asked, str(tmp_path / "file")]) == 2 and "is no folder" in capsys.readouterr().err
    monkeypatch.setattr("resvg_py.svg_to_bytes", lambda *, svg_string, **_: svg_string.encode())  # with any font
    assert main([*asked, "/proc/none"]) == 2 and "cannot be written: " in capsys.readouterr().err
    monkeypatch.setattr("resvg_py.svg_to_bytes", lambda **_: b"blank")
    assert main([*asked, str(tmp_path / "md")]) == 2
    assert "no font" in (err := capsys.readouterr().err) and "fonts-dejavu-core" in err
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main([*asked, str(tmp_path / "md")]) == 2
    assert "needs resvg-py; pip install 'allotrope[report]'" in capsys.readouterr().err
    assert not (tmp_path / "md").exists()
