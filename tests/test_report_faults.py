"""`allotrope report` given wrong input: a line that says so, and all that can be read is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from allotrope.cli import main
from allotrope.report import figures
from allotrope.report.escape import markdown, script_json, visible
from allotrope.report.plots import roofline
from allotrope.report.plots.scale import linear, log
from allotrope.report.svg import text_width
from tests import report_kit as kit
from tests import report_results as results
from tests.schemas import fits


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def notes(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object) -> tuple[str, list[str]]:
    """The page's words, and the notes on the first engine."""
    code, out, _ = call(capsys, *arguments, "-o", tmp_path / "r.html", "--json")
    assert code == 0
    found = json.loads(out)
    fits("report", found)
    page = kit.Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.problems
    return page.text, found["engines"][0]["notes"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"verdict": ', "verify.json: not valid JSON (cut short or damaged); it is left out"),
        (b"[1, 2]", "verify.json: is not an object; it is left out"),
        (b"\xff\xfe", "verify.json: not valid JSON (cut short or damaged); it is left out"),
        (b"[" * 100_000, "verify.json: not valid JSON (cut short or damaged); it is left out"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, told: str
) -> None:
    folder = kit.full(tmp_path / "engine")
    (folder / "verify.json").write_bytes(content)
    text, found = notes(capsys, tmp_path, folder)
    assert found == [told] and told in text
    assert "This makes it: allotrope verify" in text and "Reading weights: 55 % of the time." in text


def broken(verb: str) -> Any:
    """A result with one value of the wrong form, and where it is."""
    found = getattr(results, {"eval": "evaluated"}.get(verb, verb))()
    match verb:
        case "verify":
            found["levels"]["layers"]["rows"][3]["injected"] = "small"
            return found, "verify.json: levels.layers.rows[3].injected: is not an object"
        case "bench":
            found["cells"][1]["tokens_per_s"] = "many"
            return found, "bench.json: cells[1].tokens_per_s: is not a number"
        case "summarize":
            found["paired_by"]["rougeL"]["interval"] = [1.0]
            return found, "summarize.json: paired_by.rougeL.interval: has not two ends"
        case "ablate":
            del found["rows"][2]["name"]
            return found, "ablate.json: rows[2]: has no 'name'"
        case "eval":
            found["perplexity"] = 10**400
            return found, "eval.json: perplexity: is not a finite number"
        case _:
            found["accounted"]["linear"]["share"] = True
            return found, "explain.json: accounted.linear.share: is not a number"


@pytest.mark.parametrize("verb", kit.VERBS)
def test_a_value_of_the_wrong_form_costs_its_section_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    value, told = broken(verb)
    text, found = notes(capsys, tmp_path, kit.full(tmp_path / "engine", {verb: value}))
    assert told in found and f"It cannot be shown: {told}." in text
    others = {"verify": "Sort the list.", "summarize": "223 of 224"}
    assert others.get(verb, "Does it say the same?") in text
    assert "Engine passport" in text and "Raw results" in text


def test_files_of_no_known_kind_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kit.full(tmp_path / "engine")
    kit.write(folder / "notes.json", {"todo": 1})
    _, found = notes(capsys, tmp_path, folder)
    assert found == ["notes.json: of no kind that this version knows; it is left out"]


def test_result_files_belong_to_the_engine_before_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (kit.full(tmp_path / name, {"ablate": None}) for name in ("a", "b"))
    kit.write(tmp_path / "parts.json", results.ablate())
    call(capsys, first, tmp_path / "parts.json", second, "-o", tmp_path / "r.html", "--quiet")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "From bare to all on" in text and text.count("This makes it: <code>allotrope ablate") == 1
    assert text.index("From bare to all on") < text.index("This makes it: <code>allotrope ablate")


def test_usage_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kit.full(tmp_path / "engine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "engine.json").write_text("{")
    (tmp_path / "file").write_text("")
    verify = folder / "verify.json"
    for arguments, told in (
        ([tmp_path / "empty"], "is no engine (no engine.json); build one with `allotrope build`"),
        ([tmp_path / "absent"], "no such engine folder or result file"),
        ([tmp_path / "damaged"], "not valid JSON (cut short or damaged); build it again"),
        ([verify], "nothing to report: no engine's folder is named"),
        ([folder, "-o", tmp_path / "empty"], "is a folder; name a file with -o"),
        ([folder, "-o", tmp_path / "file" / "r.html"], "cannot be written: "),
        ([folder, "-o", "/proc/none/r.html"], "cannot be written: "),
        ([], "the following arguments are required: ENGINE"),
    ):
        code, out, err = call(capsys, *arguments)
        assert code == 2 and told in err and len(err.splitlines()) == 1 and not out, (arguments, err)


def test_what_people_read_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kit.full(tmp_path / "engine", {"verify": results.verify(verdict="degraded", passed=False)})
    code, out, _ = call(capsys, folder, "-o", tmp_path / "r.html")
    assert code == 0 and max(map(len, out.splitlines()[:-1])) <= 80
    assert out.startswith("engine: Verification failed (verdict: degraded") and "opens in any browser" in out


def test_figures_in_words() -> None:
    said = [figures.number(value) for value in (None, 0, 0.0412, 3.4e-7, 12.34, 312.4, 12400, 2.5e9, -4)]
    assert said == ["–", "0", "0.0412", "3.4 × 10⁻⁷", "12.3", "312", "12,400", "2.5 × 10⁹", "−4"]
    shares = [figures.percent(value) for value in (0, 0.71, 0.974, 0.9997, 0.999997, 1, 0.0042, 1e-5, 12)]
    assert shares == ["0 %", "71 %", "97.4 %", "99.97 %", "99.9997 %", "100 %", "0.42 %", "0.001 %", "1,200 %"]
    assert [figures.seconds(value) for value in (0, 3e-8, 2.43e-5, 0.0124, 7.9, 300)] == (
        ["0 s", "30 ns", "24.3 µs", "12.4 ms", "7.9 s", "5.0 min"]
    )
    assert [figures.times(value) for value in (0.8, 1.2, 3.1, 12.34, 150)] == [
        "0.80×",
        "1.20×",
        "3.1×",
        "12.3×",
        "150×",
    ]
    assert figures.date("2026-11-29T15:05:09Z") == "29 Nov 2026, 15:05 UTC"
    assert figures.date("2026-99-29T15:05:09Z") == "2026-99-29T15:05:09Z" and "unknown" in figures.date(None)


def test_foreign_text_is_harmless_everywhere() -> None:
    assert visible("a\u202eb\x07\ud800\nc") == "a⟨U+202E⟩b⟨U+0007⟩⟨U+D800⟩\nc"
    assert "<" not in script_json({"</script>": "<!--"}) and json.loads(script_json(["\ud800</"])) == ["\ud800</"]
    assert markdown("[x](y) | <b> `c`\nd") == r"\[x\](y) \| &lt;b&gt; \`c\` d"


def test_names_of_dots_cover_neither_each_other_nor_other_dots() -> None:
    """Three ops at nearly the same place, and one at the edge of a narrow picture."""
    spots = [roofline.Spot(f"linear_{i}", 1.5 + i / 50, 4e10, 0.3, "") for i in range(3)]
    spots.append(roofline.Spot("linear_activation", 90.0, 4e10, 0.1, ""))
    for width in (320, 720):
        drawn = roofline.draw(width, spots, roofline.Roofs((("memory", 9e9),), 4e10)).inline("wide")
        marks = re.findall(r'class="label named" x="([\d.]+)" y="([\d.]+)" text-anchor="middle">([^<]*)', drawn)
        boxes = [(float(x), float(y), text_width(name) / 2) for x, y, name in marks]
        assert len(boxes) >= 2
        for i, (x, y, half) in enumerate(boxes):
            assert x - half > 0 and x + half < width
            assert all(abs(x - u) >= half + other or abs(y - v) >= 14 for u, v, other in boxes[:i])


def test_scales_hold_their_values() -> None:
    scale = linear([3.0, 9.0], 0, 100, room=0)
    assert scale(0) == 0 and scale(9) == 100 and scale(99) == 100 and 0 in scale.ticks()
    assert linear([], 0, 10)(0.5) == 5
    decades = log([2e-7, 3e-5, 0.0], 100, 0)
    assert decades(1e-7) == 100 and decades(1e-4) == 0 and decades(0) == 100
    assert [f"{tick:.0e}" for tick in decades.ticks()] == ["1e-07", "1e-06", "1e-05", "1e-04"]
    assert log([], 0, 10)(1) == 5 and log([5e-324, 1e308], 0, 1).high > 1
