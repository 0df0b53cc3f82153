"""The report in Chromium, driven: nothing fails, is fetched or sticks out, and all is reached (make test-browser)."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from allotrope.cli import main
from tests import report_kit as kit
from tests import report_results as results

pytestmark = pytest.mark.browser
AXE = Path(__file__).parents[1] / ".venv" / "axe" / "package" / "axe.min.js"
WIDTHS, SCHEMES = (360, 768, 1440), ("light", "dark")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
STICKING_OUT = """
return [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".scroll, svg, .skip") && e.getClientRects().length)
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.outerHTML.slice(0, 80));
"""
UNFOLD = """
document.querySelectorAll("details").forEach((e) => { e.open = true; });
document.querySelectorAll(".engine[hidden]").forEach((e) => { e.hidden = false; });
"""
Show = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One engine with everything; two of which one failed and whose names, texts and commands are long and hostile."""
    folder = tmp_path_factory.mktemp("report")
    good = kit.full(folder / "engine")
    summaries, verify = results.summarize(), results.verify(verdict="degraded", passed=False)
    long = "</script><b>x</b>\u202e" + "w" * 300
    summaries["samples"][1] |= {"id": long, "engine": long, "original": "plain"}
    verify["levels"]["layers"]["rows"][5] |= {"complaint": "adds 40 times what its precision explains", "ok": False}
    bad = kit.full(folder / ("bad-" + "n" * 80), {"summarize": summaries, "verify": verify, "ablate": None})
    made = {"one": folder / "one.html", "two": folder / "two.html"}
    assert main(["report", str(good), "-o", str(made["one"]), "--quiet"]) == 0
    assert main(["report", str(good), str(bad), "-o", str(made["two"]), "--quiet"]) == 0
    return made


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield found
    found.quit()


@pytest.fixture
def show(driver: Any, pages: dict[str, Path]) -> Show:
    """Opens a page at a width and in a scheme; gives the driver."""

    def shown(page: str, width: int = 1440, scheme: str = "light", *, media: str = "") -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}  # nobody waits for a page to have scrolled
        features = [{"name": "prefers-color-scheme", "value": scheme}, calm]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        driver.get("about:blank")  # so that a hash does not stay
        for kind in ("browser", "performance"):
            driver.get_log(kind)
        driver.get(pages[page].as_uri())
        return driver

    return shown


def errors(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser")]


def asked_for(driver: Any) -> set[str]:
    """Every address that was asked for, but the page's own."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {url for url in sent if not url.startswith(("file:", "data:"))}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["one", "two"])
def test_nothing_fails_is_fetched_or_sticks_out(show: Show, page: str, width: int, scheme: str) -> None:
    driver = show(page, width, scheme)
    driver.execute_script(UNFOLD)
    assert errors(driver) == [] and asked_for(driver) == set()
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script(STICKING_OUT) == []
    dark = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(20, 24, 28)") == (scheme == "dark")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("page", "width"), [("one", 1440), ("one", 360), ("two", 1440)])
def test_axe_finds_nothing_serious(show: Show, page: str, width: int, scheme: str) -> None:
    driver = show(page, width, scheme)
    driver.execute_script("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    found = driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
    assert len(found["passes"]) > 20
    bad = [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found["violations"]]
    assert bad == []


def test_tabs_go_by_pointer_keys_and_links(show: Show) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = show("two")
    tabs = driver.find_elements("css selector", "[role=tab]")
    panels = driver.find_elements("css selector", ".engine")

    def state() -> list[tuple[str, bool]]:
        chosen = [tab.get_attribute("aria-selected") for tab in tabs]
        return list(zip(chosen, [panel.is_displayed() for panel in panels], strict=True))

    first, second = [("true", True), ("false", False)], [("false", False), ("true", True)]
    assert state() == first
    tabs[1].click()
    assert state() == second
    tabs[1].send_keys(Keys.ARROW_RIGHT)
    assert state() == first and driver.switch_to.active_element == tabs[0]
    tabs[0].send_keys(Keys.END)
    assert state() == second
    driver.execute_script("location.hash = 'e1-speed'")
    time.sleep(0.2)
    assert state() == first
    assert driver.execute_script("return document.getElementById('e1-speed').getBoundingClientRect().top") < 400


def test_marks_speak_to_pointer_and_keys(show: Show) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = show("one")
    frame = driver.find_element("css selector", "[aria-labelledby=plot-layers] .drawn")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", frame)
    marks = frame.find_elements("css selector", ".wide [data-tip]")
    assert len(marks) == 14 and not frame.find_elements("css selector", "title")
    ActionChains(driver).move_to_element(marks[3]).perform()
    tip = driver.find_element("css selector", ".tip")
    assert tip.is_displayed() and tip.text == "blocks.2: adds 3.1 × 10⁻⁷, floor 3.4 × 10⁻⁷"
    box, around = tip.rect, frame.rect
    assert box["x"] >= around["x"] - 1 and box["x"] + box["width"] <= around["x"] + around["width"] + 1
    frame.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    frame.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert tip.is_displayed() and tip.text.startswith("blocks.0:") and tip.get_attribute("role") == "status"


def test_tables_are_sorted_by_keyboard(show: Show) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = show("one")
    table = next(one for one in driver.find_elements("css selector", "table[data-sort]") if "of limit" in one.text)
    head = next(one for one in table.find_elements("css selector", "th") if one.text.startswith("tokens/s"))

    def rates() -> list[str]:
        return [
            row.find_elements("css selector", "td")[0].text for row in table.find_elements("css selector", "tbody tr")
        ]

    before = rates()
    button = head.find_element("css selector", "button")
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending" and rates() == sorted(before, key=float)
    button.send_keys(Keys.SPACE)
    assert head.get_attribute("aria-sort") == "descending" and rates() == sorted(before, key=float, reverse=True)
    assert len(table.find_elements("css selector", "[aria-sort]")) == 1


def test_the_scheme_can_be_switched(show: Show) -> None:
    driver = show("one", scheme="dark")

    def colour() -> str:
        return str(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))

    button = driver.find_element("css selector", "button.theme")
    assert colour() == "rgb(20, 24, 28)" and button.text == "Light"
    button.click()
    assert colour() == "rgb(255, 255, 255)" and button.text == "Dark"


def test_results_can_be_taken_out(show: Show, pages: dict[str, Path], tmp_path: Path) -> None:
    driver = show("one")
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    driver.find_element("css selector", "button[data-save=raw-1-bench]").click()
    path = tmp_path / "engine-bench.json"
    until = time.monotonic() + 10
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert json.loads(path.read_text()) == json.loads((pages["one"].parent / "engine" / "bench.json").read_text())
    assert errors(driver) == []


def test_it_reads_without_script_and_in_print(show: Show, driver: Any) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show("two")
        assert all(panel.is_displayed() for panel in driver.find_elements("css selector", ".engine"))
        assert driver.find_elements("css selector", "svg title") and driver.find_element("css selector", "nav.switch a")
        assert not driver.find_element("css selector", "button.theme").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    show("two", 700, scheme="dark", media="print")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 700, "tables fit a page"
    assert all(panel.is_displayed() for panel in driver.find_elements("css selector", ".engine"))
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
