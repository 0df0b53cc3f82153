"""`allotrope report`: what the page holds, in which order, and that nothing on it is a stranger's."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from allotrope.cli import main
from tests import report_kit as kit
from tests import report_results as results
from tests.schemas import fits, fits_kept

SECTIONS = (
    *("What was asked", "Environment", "Engine passport", "Verdict", "What the formats cost", "Speed", "Roofline"),
    *("Where the time goes", "What each part buys", "Timeline", "Summaries", "Over a text", "Answers side by side"),
    "Raw results",
)
HOSTILE = "</script><img src=x onerror=alert(1)>\u202egnp.exe\u2066 \" onload='x' &amp; \ud800 <!--"


def made(tmp_path: Path, *engines: Path, more: tuple[object, ...] = ()) -> str:
    """The page's text."""
    out = tmp_path / "report.html"
    assert main(["report", *map(str, engines), "-o", str(out), "--quiet", *map(str, more)]) == 0
    return out.read_text(encoding="utf-8")


@pytest.fixture
def whole(tmp_path: Path) -> str:
    return made(tmp_path, kit.full(tmp_path / "engine"))


def test_what_these_tests_read_is_what_the_verbs_keep(tmp_path: Path) -> None:
    folder = kit.full(tmp_path / "engine")
    for verb in kit.VERBS:
        assert fits_kept(verb, folder)


def test_the_page_is_whole(whole: str) -> None:
    """Elements nest, ids are unique, what is referred to exists, and headings do not skip a level."""
    page = kit.Page(whole)
    assert not page.problems
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = {a[key] for _, a in page.elements for key in ("aria-labelledby", "aria-controls", "data-save") if key in a}
    named |= {a["href"][1:] for a in page.all("a")}
    assert named <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("main")) == whole.count("</title><link") == 1


def test_every_kept_evaluation_is_shown_the_newest_first(whole: str) -> None:
    places = [whole.index(f"Over 8,190 tokens of {file}") for file in ("held_out.txt", "stories.txt")]
    assert places == sorted(places) and whole.index("Code that runs") < places[1]
    assert len(re.findall("<code>allotrope eval engine</code></td>", whole)) == 2, "both commands are listed"


def test_sections_stand_in_order(whole: str) -> None:
    found = re.findall(r"<h2[^>]*>(.*?)</h2>", whole)
    assert tuple(found) == SECTIONS
    assert re.search(r"<h1>Close to the original, 3\.1× as fast\.</h1>", whole)


def test_nothing_is_fetched_and_nothing_else_may_run(whole: str) -> None:
    page = kit.Page(whole)
    for tag, attributes in page.elements:
        for key in ("src", "href", "data", "action", "srcset", "poster"):
            assert attributes.get(key, "#").startswith(("#", "data:image/svg")), (tag, attributes)
        assert not [key for key in attributes if key.startswith("on") or key == "style"], (tag, attributes)
    assert "@import" not in whole and not re.search(r"url\(", whole)
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv"))["content"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    run = list(re.findall(r"<script>(.*?)</script>", whole, re.DOTALL))
    style = re.findall(r"<style>(.*?)</style>", whole, re.DOTALL)
    for text in [*run, *style]:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert len(run) == len(style) == 1


def test_every_figure_names_its_command_and_date(whole: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", whole, re.DOTALL)
    assert len(figures) > 15
    own = [figure for figure in figures if ">Commands<" not in figure and ">Tactics chosen<" not in figure]
    assert len(figures) - len(own) == 2  # the list of commands itself, and what engine.json says
    for figure in own:
        assert "<code>allotrope " in figure and "29 Nov 2026, 15:05 UTC" in figure, figure[:300]


def test_every_plot_has_words_and_a_table(whole: str) -> None:
    plots = re.findall(r'<figure class="plot".*?</figure>', whole, re.DOTALL)
    names = [re.search(r'id="plot-([a-z-]+)"', plot) for plot in plots]
    shown = [name[1] for name in names if name]
    assert shown == ["layers", "weights", "attribution", "speed", "roofline", "time", "ablation", "timeline", "rouge"]
    for plot in plots:
        assert re.search(r'<p class="says">.{40}', plot) and plot.count("<tr>") > 2
        assert plot.count("<svg") == 2 and 'data-tip=""' in plot


def test_figures_come_from_the_files(whole: str, tmp_path: Path) -> None:
    text = kit.Page(whole).text
    for words in (
        *("256 thousand parameters", "int4 weights at 4.5 bits", "runner-up", "torch_flip4, 44.7 µs"),
        *("a cpu has no launches to save", "0.0081", "97.4 %", "223 of 224", "token 18 after prompt"),
        *("blocks.0.mlp.down", "31 tokens/s", "llama.cpp", "5.17.0", "not installed; python -m", "460 tokens/s"),
        *(
            "−0.42",
            "−1.6 to +0.8",
            "12.3112",
            "1.00500 times the original's",
            "45 %",
            "−0.15 to 0",
            "the engine's limit is 2048 tokens",
            "55 % of the time",
            "−3.3 %",
            "331",
            "limit 43.7 tokens/s",
            "99.9 % of the time",
        ),
        *("1.31 s", "−360 ms", "Sort the list.", "rounding explains it", "wide: asked for"),
    ):
        assert words in text, words
    stored = dict(re.findall(r'<script type="application/json" id="(.*?)">(.*?)</script>', whole))
    assert set(stored) == {f"raw-1-{verb}" for verb in (*kit.VERBS, "engine")}
    kept = json.loads((tmp_path / "engine" / "bench.json").read_text())
    assert json.loads(stored["raw-1-bench"]) == kept


@pytest.mark.parametrize("verb", kit.VERBS)
def test_what_was_not_measured_has_the_command_that_measures_it(tmp_path: Path, verb: str) -> None:
    page = kit.Page(made(tmp_path, kit.full(tmp_path / "engine", {verb: None})))
    assert f"This makes it: allotrope {verb} " in page.text


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    """Whatever a prompt, a name or a message says, it adds no element, and nothing turns the reading order."""
    plain = kit.Page(made(tmp_path, kit.full(tmp_path / "plain")))

    def poisoned(value: Any, key: str = "") -> Any:
        keep = ("verdict", "required", "command", "date", "kind", "group", "base", "reason_absent", "best_peer", "what")
        if isinstance(value, dict):
            return {name: poisoned(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item, key) for item in value]
        return value + HOSTILE if isinstance(value, str) and key not in keep else value

    bad = {
        "verify": results.verify(),
        "bench": results.bench(),
        "summarize": results.summarize(),
        "explain": results.explain(),
    }
    folder = kit.full(tmp_path / "bad", poisoned(bad))
    kit.engine(folder, **poisoned({"family": "x", "source": {"path": "y"}, "device": kit.DEVICE}))
    text = made(tmp_path, folder)
    page = kit.Page(text)
    assert not page.problems and "gnp.exe" in text
    assert not set("\u202e\u2066\ud800") & set(text) and "⟨U+202E⟩" in text
    assert [tag for tag, _ in page.elements if tag in ("img", "iframe", "object")] == []
    assert len(page.all("script")) == len(plain.all("script"))
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    stored = re.search(r'id="raw-1-summarize">(.*?)</script>', text)
    assert stored and json.loads(stored[1])["samples"][0]["engine"].endswith(HOSTILE)


@pytest.mark.parametrize(
    ("changed", "word", "alarm"),
    [
        (
            {"verdict": "degraded", "passed": False},
            "degraded",
            "Verification failed (verdict: degraded, required: close)",
        ),
        (
            {"verdict": "degraded", "required": "degraded"},
            "degraded",
            "The verdict is degraded: this is not the speed of",
        ),
        (
            {"verdict": "close", "required": "identical", "passed": False},
            "close",
            "Verification failed (verdict: close",
        ),
        ({"verdict": None}, "incomplete", "Verified in part only"),
        ({"verdict": "fine"}, "not readable", "Its verdict cannot be read"),
        (None, "not verified", "Not verified: this may be the speed of another model."),
    ],
)
def test_no_speed_without_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any] | None, word: str, alarm: str
) -> None:
    folder = kit.full(tmp_path / "engine", {"verify": None if changed is None else results.verify(**changed)})
    code = main(["report", str(folder), "-o", str(tmp_path / "r.html"), "--json"])
    out = json.loads(capsys.readouterr().out)
    fits("report", out)
    assert code == 0 and out["engines"][0]["verdict"] == word and not out["engines"][0]["proven"]
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    _red_beside_every_speed(text, alarm)
    assert "as fast" not in re.findall("<h1>(.*?)</h1>", text)[0]


def _red_beside_every_speed(text: str, alarm: str) -> None:
    cards = re.findall(r'<div class="card (.*?)">.*?</div>', text)
    assert cards == ["bad", "bad"]
    assert re.search(rf'<p class="alarm">{re.escape(alarm)}', text)
    for title in ("Speed", "Where the time goes", "What each part buys"):
        after = text[re.search(rf">{title}</h2>", text).end() :]  # type: ignore[union-attr]
        assert after.startswith('<p class="bad"') and alarm in after[:200]


def test_a_verdict_of_another_build_is_out_of_date(tmp_path: Path) -> None:
    folder = kit.full(tmp_path / "engine")
    kit.engine(folder, version="0.2.0")
    text = made(tmp_path, folder)
    _red_beside_every_speed(text, "Its verdict is of another build: verify it again.")
    assert text.count("Found on another build of this engine") > 9  # beside every figure


@pytest.mark.parametrize(
    ("of", "alarm"), [("7" * 64, "Found on another build of this engine"), (None, "It does not say")]
)
def test_a_speed_of_another_build_is_not_this_engines(tmp_path: Path, of: str | None, alarm: str) -> None:
    """The verdict is this engine's, what was timed is not: it does not stand at the top as if it were."""
    folder = kit.full(tmp_path / "engine")
    kept = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    kit.write(folder / "bench.json", kept | {"engine_digest": of})
    text = made(tmp_path, folder)
    assert re.findall("<h1>(.*?)</h1>", text) == ["Close to the original."]
    assert re.findall(r'<div class="card (.*?)">', text) == ["", "bad"]
    assert re.search(rf'<p class="alarm">{alarm}', text)


def test_a_machine_that_was_not_idle_is_said_to_be_so(tmp_path: Path) -> None:
    bench = results.bench()
    assert "was not idle" not in made(tmp_path, kit.full(tmp_path / "quiet", {"bench": bench}))
    bench["cells"][2]["peers"]["hf"]["foreign"] = 1.4
    text = made(tmp_path, kit.full(tmp_path / "engine", {"bench": bench}))
    assert '<p class="warn">The machine was not idle: other processes had up to 1.4 cores' in text


def test_what_peers_said_is_told_over_all_cells(tmp_path: Path) -> None:
    bench = results.bench()
    first, *others = (cell["peers"] for cell in bench["cells"])
    first["llama.cpp"]["different"] = True  # the others do not make up for it
    for peers in (first, *others):
        peers["hf"]["agreement"] = {"texts": 8, "equal": 8}
        peers["other"] = {**peers["hf"], "agreement": {"texts": 8, "equal": 6}}
    others[0]["other"] = {"reason_absent": "signal SIGKILL"}
    text = kit.Page(made(tmp_path, kit.full(tmp_path / "engine", {"bench": bench}))).text
    assert "says something else in 1 of 4 cells: its speed does not count" in text
    assert "took part, and said the same, token by token" in text
    assert "took part; 18 of 24 texts are the same, the others part where its precision explains it; " in text
    assert "absent from 1 of 4 cells: signal SIGKILL" in text


def test_an_engine_changed_after_building_has_no_verdict(tmp_path: Path) -> None:
    folder = kit.full(tmp_path / "engine")
    path = folder / "engine.json"
    path.write_text(path.read_text().replace("decicoder", "decicodex"))
    text = made(tmp_path, folder)
    _red_beside_every_speed(text, "Changed after it was built: no verdict is about this engine.")
    assert "engine.json: its content does not match its own digest" in kit.Page(text).text


def test_a_proven_engine_has_no_red(whole: str) -> None:
    assert 'class="alarm"' not in whole and '<p class="bad"' not in whole


def test_engines_stand_side_by_side(tmp_path: Path) -> None:
    good = kit.full(tmp_path / "good")
    bad = kit.full(tmp_path / "bad", {"verify": results.verify(verdict="degraded", passed=False)})
    text = made(tmp_path, good, bad)
    page = kit.Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert not page.problems and len(set(ids)) == len(ids)
    assert re.search(r'<nav class="switch".*href="#engine-1">good<.*href="#engine-2">bad<', text)
    assert text.count('<div class="engine"') == 2 and "2 engines, 1 of them proven" in page.text
    assert '<p class="bad" role="note">bad: Verification failed' in text


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    text = made(tmp_path, kit.full(tmp_path / "a" / "engine"), kit.full(tmp_path / "b" / "engine"))
    assert ">a/engine</a>" in text and ">b/engine</a>" in text


def test_a_large_engine_fits_a_page(tmp_path: Path) -> None:
    """Eighty blocks, hundreds of weights, a hundred cells and samples by the million: under 6 MB, in seconds."""
    verify, bench, summarize = results.verify(), results.bench(), results.summarize()
    layers = verify["levels"]["layers"]
    layers["rows"] = [{**layers["rows"][1], "block": f"blocks.{i}"} for i in range(80)]
    verify["attribution"]["modules"] *= 200
    bench["cells"] *= 25
    bench["samples"] = {"engine": [0.123456789 + i for i in range(400_000)]}
    summarize["samples"] = [{**summarize["samples"][0], "id": str(i), "engine": "word " * 200} for i in range(3000)]
    folder = kit.full(tmp_path / "large", {"verify": verify, "bench": bench, "summarize": summarize})
    narrow = kit.quantisation()
    narrow["weights"] *= 200
    evidence = kit.manifest()["evidence"]
    evidence["choices"] = [{**evidence["choices"][0], "paths": [f"blocks.{i}.attn.qkv"]} for i in range(600)]
    kit.engine(folder, evidence={**evidence, "quantisation": narrow})
    began = time.process_time()  # others may be at work
    text = made(tmp_path, folder)
    assert time.process_time() - began < 5
    assert len(text.encode()) < 6_000_000
    assert "with its samples, too much for a page: they are in the file itself" in kit.Page(text).text
