"""The reports in a real browser: nothing is fetched, nothing complains, and what can be turned, pressed and typed works."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from runs import SmokeRun
from test_study_plan import stored

from llm_forgetting.cli.main import main
from llm_forgetting.study.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)")

# Graphics in software: machines that test have no graphics card.
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# Opened by whoever waits for it; a machine that computes beside gets more time than the two seconds that are aimed at.
SECONDS = 6.0
CAMERAS = "() => [...document.querySelectorAll('[data-link]')].map((plot) => JSON.stringify(plot._fullLayout.scene.camera.eye))"


@dataclass
class Opened:
    """A report in the browser, with all that it asked for and complained of."""

    page: Any
    seconds: float = 0.0
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, path: Path) -> None:
        """Load the file, and wait until every figure is drawn."""
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self._heard(said.type, said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        started = time.perf_counter()
        self.page.goto(path.as_uri(), wait_until="load")
        self.seconds = time.perf_counter() - started
        self.page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=120_000)

    def _heard(self, kind: str, text: str) -> None:
        # The one thing that Chromium says of plotly.js itself: how it reads its own canvas.
        if kind in ("error", "warning") and "willReadFrequently" not in text and "ReadPixels" not in text:
            self.complaints.append(text)

    def cameras(self) -> list[str]:
        """Where every surface is looked at from."""
        found: list[str] = self.page.evaluate(CAMERAS)
        return found

    def unlike(self, cameras: list[str]) -> list[str]:
        """The cameras as soon as all of them have moved and are alike."""
        for _ in range(100):
            found = self.cameras()
            if len(set(found)) == 1 and found[0] != cameras[0]:
                return found
            self.page.wait_for_timeout(50)
        raise AssertionError(f"the cameras did not move together: {self.cameras()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run_report(browser: Any, smoke_run: SmokeRun) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = Opened(context.new_page())
    opened.open(smoke_run.path / "report.html")
    yield opened
    context.close()


def test_a_run_opens_at_once_and_asks_for_nothing(run_report: Opened, smoke_run: SmokeRun) -> None:
    assert run_report.requests[0] == (smoke_run.path / "report.html").as_uri()
    assert [url for url in run_report.requests[1:] if not url.startswith(("data:", "blob:"))] == []
    assert run_report.complaints == []
    assert run_report.seconds < SECONDS


def test_the_answer_is_on_the_first_screen(run_report: Opened, smoke_run: SmokeRun) -> None:
    answer = run_report.page.locator("#answer p").first
    assert answer.inner_text() == smoke_run.results["answer"]
    box = answer.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 500


def test_every_figure_is_drawn(run_report: Opened) -> None:
    plots = run_report.page.locator(".plot")
    assert plots.count() > 10
    assert run_report.page.locator(".plot.js-plotly-plot .main-svg").count() >= plots.count()
    assert run_report.page.locator("[data-link] canvas").count() >= 4


def test_the_wheel_over_a_surface_scrolls_the_page_and_leaves_the_surface(run_report: Opened) -> None:
    page, first = run_report.page, run_report.page.locator("[data-link]").first
    first.scroll_into_view_if_needed()
    before, at = run_report.cameras(), page.evaluate("scrollY")
    first.hover()
    page.mouse.wheel(0, 200)
    page.wait_for_function("at => scrollY > at", arg=at)
    assert run_report.cameras() == before


def test_a_switch_puts_all_surfaces_on_one_scale_and_back(run_report: Opened) -> None:
    page = run_report.page
    heights = """() => new Set([...document.querySelectorAll("[data-link]")].map(
        (plot) => plot._fullLayout.scene.zaxis.range.map((end) => end.toFixed(6)).join())).size"""
    assert page.evaluate(heights) == 4
    switch = page.get_by_label("One scale for all surfaces")
    switch.check()
    page.wait_for_function(f"() => ({heights})() === 1", timeout=120_000)
    switch.uncheck()
    page.wait_for_function(f"() => ({heights})() === 4", timeout=120_000)
    assert run_report.complaints == []


def test_surfaces_turn_together(run_report: Opened) -> None:
    page, first = run_report.page, run_report.page.locator("[data-link]").first
    first.scroll_into_view_if_needed()
    before = run_report.cameras()
    assert len(before) == 4
    assert len(set(before)) == 1
    box = first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 6):
        page.mouse.move(x + 15 * step, y)
    page.mouse.up()
    dragged = run_report.unlike(before)
    first.focus()
    page.keyboard.press("ArrowLeft")
    turned = run_report.unlike(dragged)
    page.get_by_role("button", name="Reset", exact=True).click()
    assert run_report.unlike(turned) == before
    assert run_report.complaints == []


def test_no_button_sends_anything_away_and_pictures_can_be_saved(run_report: Opened) -> None:
    page = run_report.page
    names = {button.get_attribute("aria-label") for button in page.locator(".modebar-btn").all()}
    assert names == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}
    plot = page.locator(".plot").last
    plot.scroll_into_view_if_needed()
    plot.hover()
    with page.expect_download() as download:
        plot.locator(".modebar-btn").first.click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    assert run_report.complaints == []


def test_dark_and_light(run_report: Opened) -> None:
    page = run_report.page
    button = page.get_by_role("button", name="Dark")

    def ground() -> str:
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    assert (button.get_attribute("aria-pressed"), ground()) == ("false", "rgb(255, 255, 255)")
    button.click()
    assert (button.get_attribute("aria-pressed"), ground()) == ("true", "rgb(21, 24, 28)")
    ink = "() => document.querySelector('.js-plotly-plot')._fullLayout.font.color"
    assert page.evaluate(ink) == "#e7e9ec"
    button.click()
    assert page.evaluate(ink) == "#1b1f24"
    assert run_report.complaints == []


def test_the_keyboard_reaches_everything(run_report: Opened) -> None:
    page = run_report.page
    page.locator("#theme").focus()
    page.keyboard.press("Shift+Tab")
    seen: list[str] = []
    for _ in range(200):
        seen.append(page.evaluate("() => document.activeElement.outerHTML.slice(0, 90)"))
        page.keyboard.press("Tab")
    reached = (
        '<a class="skip"',
        '<button type="button" id="theme"',
        '<a href="#landscape"',
        '<button type="button" data-by="left"',
        '<div class="plot js-plotly-plot" role="group"',
        "<summary",
        "<select",
        '<input type="search"',
        "<pre",
    )
    for start in reached:
        assert any(text.startswith(start) for text in seen), f"{start} in {seen}"


def test_the_first_link_skips_to_the_content(run_report: Opened) -> None:
    page = run_report.page
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "content"


def test_items_can_be_filtered_and_sorted(run_report: Opened, smoke_run: SmokeRun) -> None:
    page = run_report.page
    lost = smoke_run.results["forgetting"]["train"]["accuracy"]["tasks"][0]["change"]["only_before"]
    listing = page.locator(".listing")
    listing.locator("select").nth(1).select_option("trained")
    assert listing.locator("output").inner_text() == f"{lost} of 96 shown"
    head = listing.get_by_role("columnheader", name="loss at the end")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    shown = [float(text) for text in listing.locator("tbody tr:not([hidden]) td:last-child").all_inner_texts()]
    assert shown == sorted(shown)
    assert len(shown) == lost
    listing.locator("input").fill("nothing is called so")
    assert listing.locator("output").inner_text() == "0 of 96 shown"
    listing.locator("input").fill("")


def test_nothing_sticks_out_of_a_narrow_window(browser: Any, smoke_run: SmokeRun) -> None:
    context = browser.new_context(viewport={"width": 380, "height": 800}, color_scheme="dark")
    opened = Opened(context.new_page())
    opened.open(smoke_run.path / "report.html")
    assert opened.page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= 380
    cut = """() => [...document.querySelectorAll(".wide, nav ul")].filter(
        (box) => box.checkVisibility() && box.scrollWidth > box.clientWidth + 2)"""
    assert opened.page.evaluate(f"() => ({cut})().length") > 2
    assert opened.page.evaluate(f"() => ({cut})().every((box) => 'more' in box.dataset)")
    opened.page.evaluate(f"() => ({cut})().forEach((box) => {{ box.scrollLeft = 1e6; }})")
    opened.page.wait_for_function(f"() => !({cut})().some((box) => 'more' in box.dataset)")
    assert opened.complaints == []
    context.close()


def test_it_prints_in_light_and_comes_back(run_report: Opened) -> None:
    pdf = run_report.page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 100_000
    assert run_report.page.evaluate("() => 'printing' in document.documentElement.dataset") is False
    assert run_report.complaints == []


def test_folded_numbers_are_printed_and_folded_again(run_report: Opened) -> None:
    page, folded = run_report.page, "() => document.querySelectorAll('details:not([open]) table').length"
    before = page.evaluate(folded)
    assert before > 2
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(folded) == 0
    page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) == before


def test_a_study_opens_and_asks_for_nothing(browser: Any, tmp_path: Path) -> None:
    content = write_report(stored(tmp_path), tmp_path)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = Opened(context.new_page())
    opened.open(tmp_path / "report.html")
    assert len(opened.requests) == 1
    assert opened.complaints == []
    assert content["answers"]["flatness"] in opened.page.locator("#answer").inner_text()
    assert opened.page.locator(".js-plotly-plot").count() == 4
    context.close()


def test_questions_open_are_searched_and_stay_in_their_column(
    browser: Any, smoke_run: SmokeRun, tmp_path: Path
) -> None:
    for name in ("results.json", "items.jsonl"):
        shutil.copy(smoke_run.path / name, tmp_path)
    assert main(["report", str(tmp_path), "--questions"]) == 0
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = Opened(context.new_page())
    opened.open(tmp_path / "report_with_questions.html")
    listing = opened.page.locator(".listing")
    first = listing.locator("tbody tr:not([hidden]) details").first
    options = first.locator("li").first
    assert not options.is_visible()
    first.locator("summary").focus()
    opened.page.keyboard.press("Enter")
    assert options.is_visible()
    listing.get_by_role("button", name="Close all questions").click()
    assert not options.is_visible()
    listing.get_by_role("button", name="Open all questions").click()
    assert listing.locator("details[open]").count() == listing.locator("tbody tr:not([hidden])").count() > 40
    asked = first.locator("summary").inner_text()
    listing.locator("input").fill(asked)
    assert listing.locator("output").inner_text() == "1 of 96 shown"
    listing.locator("input").fill("")
    listing.get_by_role("button", name="question", exact=True).click()
    texts = listing.locator("tbody tr:not([hidden]) summary").all_inner_texts()
    assert texts == sorted(texts)
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= 1280
    assert opened.complaints == []
    context.close()
