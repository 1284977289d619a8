"""The report in a browser, from file://: it draws, filters, compares and scrolls without an error.

Chromium is started once; a machine without it, or without playwright, skips these.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from noise_images import noise
from PIL import Image

from baselines import report
from baselines.page import gallery
from baselines.results.records import Prediction, write_records
from emu3.errors import UserError

pytest.importorskip("playwright")
from playwright import sync_api as playwright

from dev import screenshots

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

SAMPLES = 2000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[Path], Any]]:
    """`opened(page)` opens a file; whatever the browser complains about fails the test."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900})

    def open_page(path: Path) -> Any:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
        page.goto(path.resolve().as_uri())
        return page

    yield open_page
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory, score_maker: Callable[..., Any]) -> Path:
    """Two models on 2,000 samples of two benchmarks, over a handful of images; the second model reasons."""
    folder = tmp_path_factory.mktemp("large")
    for place, model in enumerate(("sft", "rl")):
        home = folder / "eval" / model
        home.mkdir(parents=True)
        for image in range(40):
            noise(image + 100 * place, 32, 32).save(home / f"{image}.png")
        predictions, scores = [], []
        for row in range(SAMPLES):
            shared: dict[str, Any] = {
                "id": f"id-{row:04d}",
                "benchmark": "omniedit" if row % 2 else "aurora",
                "split": "simple" if row % 2 else "complex",
                "task": f"task_{row % 5}",
                "source_set": "",
                "model": model,
                "editor": "emu3",
            }
            names: dict[str, Any] = {"source": f"{row % 40}.png", "edited": f"{(row + 1) % 40}.png", "target": None}
            about: dict[str, Any] = {"instruction": f"edit number {row}", "seed": 0, "seconds": 0.1}
            reasoning = f"Look at [8, 8, 24, 24], then at {row}." if place else None
            predictions.append(Prediction(**shared, **names, **about, reasoning=reasoning))
            value = None if row == 7 and place else float((row * (place + 1)) % 11)
            scores.append(score_maker(value=value, **shared))
        write_records(home / "predictions.parquet", predictions, {})
        write_records(home / "scores.parquet", scores, {"judge": "the judge"})
    return folder


@pytest.fixture(scope="module")
def large_page(large_run: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery.Album.__init__, "__defaults__", (0,))
        return report.run(large_run, candidate="rl", reference="sft", resamples=100)


def titles(page: Any) -> list[str]:
    return page.locator("article h3").all_text_contents()


def test_two_thousand_samples_are_drawn_as_they_are_reached(opened: Callable[[Path], Any], large_page: Path) -> None:
    """Guards first paint and memory: a screenful of cards, images that load when near, more cards by scrolling."""
    page = opened(large_page)
    assert page.locator("#count").inner_text() == "2000 samples"
    drawn = page.locator("article").count()
    assert 0 < drawn < 200
    assert all(image.get_attribute("loading") == "lazy" for image in page.locator("article img").all()[:5])
    last = page.locator("article").last
    assert not last.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 0")
    last.scroll_into_view_if_needed()
    page.wait_for_function("count => document.querySelectorAll('article').length > count", arg=drawn)
    page.wait_for_function("() => document.querySelector('article img').naturalWidth > 0")


def test_filters_narrow_and_clear(opened: Callable[[Path], Any], large_page: Path) -> None:
    """Guards each filter by a count that is known, and that they hold together."""
    page = opened(large_page)
    count = page.locator("#count")
    page.select_option("#benchmark", "AURORA")
    assert count.inner_text() == "1000 of 2000 samples"
    page.select_option("#task", "task_2")
    assert count.inner_text() == "200 of 2000 samples"
    assert all("AURORA" in tags and "task 2" in tags for tags in page.locator(".tags").all_text_contents())
    page.fill("#text", "number 1202")
    assert count.inner_text() == "1 of 2000 samples"
    page.click("#reset")
    # The browser empties the fields behind the event that says so.
    page.wait_for_function("document.getElementById('count').innerText === '2000 samples'")
    assert not page.locator('[data-of="set"]').is_visible()
    page.fill("#text", "no such thing")
    assert page.locator("#none").is_visible() and page.locator("article").count() == 0


def test_score_range_and_order(opened: Callable[[Path], Any], large_page: Path) -> None:
    """Guards the range of one model's scores, and a sample without a score, which is in no range and last in order."""
    page = opened(large_page)
    page.select_option("#whose", "rl")
    page.fill("#low", "10")
    expected = sum((row * 2) % 11 == 10 for row in range(SAMPLES) if row != 7)
    assert page.locator("#count").inner_text() == f"{expected} of 2000 samples"
    page.fill("#low", "")
    page.fill("#text", "number 7")
    page.select_option("#sort", "model:rl")
    best = page.locator("article").first.locator("figure.candidate .score").text_content()
    assert best == "10.0"
    page.select_option("#order", "1")
    assert page.locator("article").first.locator("figure.candidate .score").text_content() == "0.0"
    page.fill("#text", "id-0007")
    assert page.locator("figure.candidate .failed").text_content() == "unparsable"
    page.fill("#low", "0")
    assert page.locator("#count").inner_text() == "0 of 2000 samples"


def test_two_models_side_by_side(opened: Callable[[Path], Any], large_page: Path) -> None:
    page = opened(large_page)
    assert page.locator("#two").is_disabled()
    page.select_option("#one", "rl")
    assert page.locator("article").first.locator("figure").count() == 2
    page.select_option("#two", "sft")
    first = page.locator("article").first
    assert first.locator(".name").all_text_contents() == ["source", "rl", "sft"]
    page.select_option("#sort", "beside")
    differences = page.locator(".difference").all_text_contents()
    assert differences[0] == "rl minus sft: +5.0"
    page.select_option("#order", "1")
    assert page.locator(".difference").first.text_content() == "rl minus sft: \u22125.0"


def test_reasoning_and_its_boxes(opened: Callable[[Path], Any], large_page: Path) -> None:
    page = opened(large_page)
    first = page.locator("article").first
    first.locator("summary").click()
    assert first.locator("details p").inner_text() == "Look at [8, 8, 24, 24], then at 0."
    box, frame = first.locator(".marks path").bounding_box(), first.locator(".frame").first.bounding_box()
    assert box and frame
    # The box spans the middle half of the image; four pixels on each side cover its stroke and corners.
    assert box["x"] - frame["x"] == pytest.approx(frame["width"] / 4, abs=4)
    assert box["width"] == pytest.approx(frame["width"] / 2, abs=8)


def test_the_keyboard_is_enough(opened: Callable[[Path], Any], large_page: Path) -> None:
    """Guards readers without a mouse: samples by j and k, the search by /, letters typed there stay letters."""
    page = opened(large_page)
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.querySelector('h3').textContent") == titles(page)[1]
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.querySelector('h3').textContent") == titles(page)[0]
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.locator("#text").input_value() == "jk"


def test_an_image_is_enlarged_by_mouse_and_by_keyboard(opened: Callable[[Path], Any], large_page: Path) -> None:
    """Enter on an image opens it, the arrows go on within the sample, Escape gives the focus back; j is not heard."""
    page = opened(large_page)
    dialog = page.locator("#enlarged")
    page.locator("article").first.locator("a.enlarge").nth(1).click()
    page.wait_for_function("document.querySelector('#enlarged img').width > 300")
    assert "edit number 0\nrl" in dialog.locator("figcaption").text_content()
    page.mouse.click(5, 5)
    assert not dialog.is_visible()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    assert "edit number 0\nsft" in dialog.locator("figcaption").text_content()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.matches('article:first-child figure:nth-child(3) a')")


def test_the_address_keeps_the_filters(opened: Callable[[Path], Any], large_page: Path) -> None:
    """Guards a view that is sent to somebody, or found again after a reload; what the page has not is passed over."""
    page = opened(large_page)
    page.select_option("#task", "task_2")
    page.fill("#text", "number 1202")
    page.wait_for_function("location.search === '?text=number+1202&task=task_2'")
    page.reload()
    assert page.locator("#count").inner_text() == "1 of 2000 samples"
    assert page.locator("#text").input_value() == "number 1202"
    page.click("#reset")
    page.wait_for_function("location.search === ''")
    page.goto(f"{large_page.as_uri()}?split=simple&one=nobody&order=1&x=y&cards=1#gallery")
    assert page.locator("#count").inner_text() == "1000 of 2000 samples"
    page.wait_for_function("location.search + location.hash === '?split=simple&order=1#gallery'")


@pytest.mark.parametrize("two", ["", "rl"])
def test_images_of_a_sample_have_one_size_on_a_phone(browser: Any, make_run: Callable[..., Path], two: str) -> None:
    """The ground truth, alone in its line, was as wide as the screen and twice the size of the edits beside it."""
    names = ["no-edit", "a", "rl", "ground-truth"]
    path = report.run(make_run({name: [1.0] for name in names}, size=48))
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(f"{path.as_uri()}?one={two and 'a'}&two={two}")
    widths = page.eval_on_selector_all("article img", "all => all.map(image => image.getBoundingClientRect().width)")
    assert len(widths) == 4 and max(widths) - min(widths) < 1 and widths[0] > 140
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("figure").first.locator("figcaption").inner_text().split("\n")[-1] == "if left unedited"
    page.close()


def test_tables_are_there_without_javascript(browser: Any, large_page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(large_page.resolve().as_uri())
    assert page.locator("#scores table tbody tr").count() == 2
    assert "drawn by a script" in page.locator("noscript").inner_text()
    assert page.locator("#controls").is_hidden()
    context.close()


def test_a_quickstart_that_is_not_finished_has_no_images(tmp_path: Path) -> None:
    """Guards images of a README of two runs, half of them new."""
    with pytest.raises(UserError, match="is no finished quickstart"):
        screenshots.quickstart(tmp_path, tmp_path / "assets")
    assert not (tmp_path / "assets").exists()


def test_the_image_for_the_readme(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """Guards the screenshot: both halves are there, a model that is not is named, and a page with one split, which does
    not show that field, is photographed too."""
    page = report.run(make_run({"sft": [1.0], "rl": [3.0]}))
    output = tmp_path / "report.png"
    # In a thread, since this one runs playwright's loop for the other tests.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(screenshots.evaluation, page, output, one="rl", two="sft").result()
        failed = thread.submit(screenshots.evaluation, page, output, one="other", two="sft").exception()
    assert isinstance(failed, UserError) and "has no 'other' to show" in str(failed)
    with Image.open(output) as image:
        assert image.width == round(screenshots.SCALE * (2 * screenshots.WIDTH + screenshots.GAP))
