"""The page in a headless browser, and the command that serves it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from installed import skip_without
from PIL import Image

from dev import screenshots
from emu3.demo.__main__ import main
from emu3.demo.session import MAX_SAMPLES
from emu3.errors import run_main

skip_without("gradio")
skip_without("playwright")

needs_browser = pytest.mark.skipif(screenshots.find_browser() is None, reason="no Chromium is installed")


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """A wide image, which is fitted to 24x16 pixels, and a tall one, fitted to 16x24."""
    wide, tall = tmp_path / "wide.png", tmp_path / "tall.png"
    Image.new("RGB", (60, 40), "red").save(wide)
    Image.new("RGB", (40, 60), "blue").save(tall)
    return wide, tall


def sizes(page: screenshots.Page, selector: str) -> list[list[int]]:
    return page.eval_on_selector_all(selector, "all => all.map(image => [image.naturalWidth, image.naturalHeight])")


def message(page: screenshots.Page) -> str:
    toast = page.locator(".toast-body")
    toast.first.wait_for()
    text = toast.first.inner_text()
    toast.first.get_by_role("button").last.click()
    toast.first.wait_for(state="detached")
    return text


@needs_browser
def test_a_person_edits_a_image(demo_url: str, photos: tuple[Path, Path], tmp_path: Path) -> None:
    """The whole way: errors first, then edits, another choice, a chain of thought. Nothing is asked of other hosts."""
    wide, _ = photos
    with screenshots.opened(demo_url) as (page, elsewhere):
        screenshots.ask(page, "make it purple")
        assert "There is no image yet" in message(page)
        screenshots.ask(page, "  ", wide)
        assert "The instruction is empty" in message(page)

        screenshots.ask(page, "make it purple", samples=3)
        screenshots.wait_for_edits(page, 3)
        assert sizes(page, "#edits button img") == [[504, 336]] * 3  # 24x16, 21 times as large
        assert sizes(page, "#compare img") == [[504, 336]] * 2
        assert not page.locator("#chain").is_visible()

        first = page.locator("#compare img").last.get_attribute("src")
        page.locator("#edits button").nth(1).click()
        page.get_by_text("Before and after: edit 2").wait_for()
        assert page.locator("#compare img").last.get_attribute("src") != first

        screenshots.ask(page, "make it purple", samples=2, think=True)
        screenshots.wait_for_edits(page, 2)
        page.locator("#chain").wait_for()
        assert sizes(page, "#boxes img") == [[504, 336]]

        page.screenshot(path=tmp_path / "page.png")
        screen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert screen[0] <= screenshots.VIEWPORT_WIDTH and screen[1] <= screenshots.VIEWPORT_HEIGHT
    assert elsewhere == []


@needs_browser
def test_as_many_edits_as_can_be_asked_for_are_all_in_sight(demo_url: str, photos: tuple[Path, Path]) -> None:
    """Guards against a row of small images that is wider than its frame, which hides what sticks out."""
    with screenshots.opened(demo_url) as (page, _):
        screenshots.ask(page, "make it purple", photos[0], samples=MAX_SAMPLES)
        screenshots.wait_for_edits(page, MAX_SAMPLES)
        edges = "all => all.map(each => each.getBoundingClientRect()).map(box => [box.left, box.right])"
        [[left, right]] = page.eval_on_selector_all("#edits .grid-wrap", edges)
        thumbnails = page.eval_on_selector_all("#edits .thumbnail-item", edges)
        assert len(thumbnails) == MAX_SAMPLES
        assert left <= thumbnails[0][0] and thumbnails[-1][1] <= right


@needs_browser
def test_two_visitors_get_their_own_edits(demo_url: str, photos: tuple[Path, Path]) -> None:
    """Guards against edits that run into each other, and against one visitor's images on the other's page."""
    wide, tall = photos
    with screenshots.opened(demo_url) as (first, _):
        second = first.context.new_page()
        second.goto(demo_url)
        screenshots.ask(first, "make it purple", wide, samples=2, think=True)
        screenshots.ask(second, "make it purple", tall, samples=3)
        screenshots.wait_for_edits(second, 3)
        screenshots.wait_for_edits(first, 2)
        assert sizes(first, "#edits button img") == [[504, 336]] * 2
        assert sizes(second, "#edits button img") == [[336, 504]] * 3


@needs_browser
def test_the_screenshot_command(
    monkeypatch: pytest.MonkeyPatch, demo_url: str, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "page.png"
    command = [demo_url, str(photos[0]), "make it purple", "-o", str(output), "--samples", "1"]
    monkeypatch.setattr(sys, "argv", ["screenshots", "demo", *command])
    run_main(screenshots.main)
    with Image.open(output) as image:
        assert image.width == screenshots.VIEWPORT_WIDTH
        assert screenshots.VIEWPORT_HEIGHT / 2 < image.height <= screenshots.VIEWPORT_HEIGHT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "cannot listen at 127.0.0.1:{port} (Address already in use); choose another --port"),
        (["--port", "99999"], "cannot listen at 127.0.0.1:99999"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["--port", "0"], "/nowhere"),
        (["--port", "0", "--image-area", "0"], "--image-area is 0"),
    ],
)
def test_a_page_that_cannot_be_served_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    """Guards against a traceback, and against a port that is found in use after minutes of loading."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--model", "/nowhere", "--vision", "/nowhere", "--port", str(port), *options]
        monkeypatch.setattr(sys, "argv", ["demo", *arguments])
        with pytest.raises(SystemExit) as end:
            run_main(main)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ") and words.format(port=port) in error and error.count("\n") == 1
