"""The page in a headless browser, and the command that serves it."""

from __future__ import annotations

import inspect
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emu3.errors import UserError, run_main

pytest.importorskip("gradio")
from gradio import networking

pytest.importorskip("playwright")
from playwright import sync_api as playwright

from dev import screenshots
from emu3.demo.__main__ import main, share
from emu3.demo.session import MAX_SAMPLES

REAL_TUNNEL = networking.setup_tunnel
needs_browser = pytest.mark.skipif(screenshots.find_browser() is None, reason="no Chromium is installed")


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """A wide image, which is fitted to 24x16 pixels, and a tall one, fitted to 16x24."""
    wide, tall = tmp_path / "wide.png", tmp_path / "tall.png"
    Image.new("RGB", (60, 40), "red").save(wide)
    Image.new("RGB", (40, 60), "blue").save(tall)
    return wide, tall


def sources(page: screenshots.Page) -> list[bytes]:
    """The edits' images by their addresses, which are digests of them."""
    return page.eval_on_selector_all("#edits button img", "all => all.map(image => image.src)")


def pixels(page: screenshots.Page, selector: str) -> bytes:
    """RGB of an image as the page has it."""
    values = page.eval_on_selector(
        selector,
        """image => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
            return [...data].filter((_, place) => place % 4 < 3);
        }""",
    )
    return bytes(values)


def sizes(page: screenshots.Page, selector: str) -> list[list[int]]:
    return page.eval_on_selector_all(selector, "all => all.map(image => [image.naturalWidth, image.naturalHeight])")


def edited(page: screenshots.Page, instruction: str, samples: int, image: Path | None = None) -> str:
    """The label of the edits after the button and its work, which says their seed."""
    before = page.locator("#edits label").inner_text()
    screenshots.ask(page, instruction, image, samples)
    page.wait_for_function("before => document.querySelector('#edits label').innerText !== before", arg=before)
    screenshots.wait_for_edits(page, samples)
    return str(page.locator("#edits label").inner_text())


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
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_and_no_path_of_the_server(demo_url: str, tmp_path: Path, scheme: Any) -> None:
    """Examples, Ctrl+Enter, seeds that come back, edits of edits, the visit's edits, the download as the editor made
    it. The console is silent, and neither the page nor any reply names a folder of the server."""
    said: list[str] = []
    with screenshots.opened(demo_url, color_scheme=scheme) as (page, elsewhere):

        def read(reply: playwright.Response) -> None:
            kind = reply.headers.get("content-type", "")
            if any(text in kind for text in ("json", "html", "event-stream", "text/plain")):
                with suppress(playwright.Error):  # a stream that is open
                    said.append(reply.text())
            said.append(reply.url)

        page.on("response", read)
        page.on("console", lambda entry: said.append(f"console: {entry.text}"))
        page.on("pageerror", lambda error: said.append(f"console: {error}"))
        page.reload()
        page.locator("#examples .thumbnail-item").nth(2).click()
        page.locator("#source img").wait_for()
        page.get_by_label("number input for Samples").fill("2")
        page.get_by_label("number input for Temperature").fill("0.9")
        page.get_by_label("Instruction").focus()
        assert page.get_by_label("Instruction").input_value() == "remove the yellow square"
        page.keyboard.press("Control+Enter")
        screenshots.wait_for_edits(page, 2)
        seed = page.get_by_label("Seed", exact=True)
        first_seed, first_look = seed.input_value(), sources(page)
        assert page.locator("#edits label").inner_text().strip().endswith(f"seed {first_seed}")

        with page.expect_download() as download:
            page.get_by_text("Download edit 1 (24x16)").click()
        assert download.value.suggested_filename == f"edit-1-seed-{first_seed}.png"
        with Image.open(download.value.path()) as image:
            assert (image.size, image.format) == ((24, 16), "PNG")
            kept = image.convert("RGB")

        page.get_by_role("button", name="Edit this one: 1").click()
        page.wait_for_function("document.querySelector('#source img').naturalWidth === 24")
        assert page.get_by_label("Instruction").input_value() == ""
        assert pixels(page, "#source img") == kept.tobytes()

        assert edited(page, "make it purple", 1).strip().endswith(f"seed {seed.input_value()}")
        page.locator("#history .thumbnail-item").nth(1).click()
        screenshots.wait_for_edits(page, 2)
        assert sources(page) == first_look
        assert (seed.input_value(), page.get_by_label("Instruction").input_value()) == (
            first_seed,
            "remove the yellow square",
        )
        assert not page.get_by_label("New seed every time").is_checked()
        page.get_by_label("number input for Samples").fill("3")
        page.get_by_role("button", name="Edit", exact=True).click()
        screenshots.wait_for_edits(page, 3)
        assert sources(page)[:2] == first_look  # the same image, instruction and seed: the same samples
        page.locator("#edits .thumbnail-item").nth(2).press("Enter")
        page.get_by_text("Before and after: edit 3").wait_for()
        page.get_by_role("button", name="Stop").click()  # nothing runs: nothing happens
        said.append(page.content())
    assert elsewhere == []
    assert [text for text in said if text.startswith("console: ")] == []
    roots = (tempfile.gettempdir(), str(Path(__file__).parents[2]), str(Path.home()), sys.prefix)
    assert len(said) > 20 and [root for root in roots if any(root in text for text in said)] == []


@needs_browser
def test_on_a_phone_the_edits_come_into_view(demo_url: str, photos: tuple[Path, Path]) -> None:
    with screenshots.opened(demo_url) as (page, _):
        page.set_viewport_size({"width": 390, "height": 844})
        screenshots.ask(page, "make it purple", photos[0], samples=2)
        screenshots.wait_for_edits(page, 2)
        page.wait_for_function("document.querySelector('#compare').getBoundingClientRect().top < 400")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


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


def test_a_public_address_is_asked_for_by_its_flag_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards gradio's function, which is not documented, and a network that has none to give."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(networking, "setup_tunnel", lambda *given: asked.append(given) or "https://x.example")
    assert share("0.0.0.0", 7860) == "https://x.example"
    [(host, port, token, server, certificate)] = asked
    assert (host, port, server, certificate) == ("127.0.0.1", 7860, None, None) and len(token) > 30
    assert list(inspect.signature(REAL_TUNNEL).parameters)[:3] == ["local_host", "local_port", "share_token"]

    def nobody(*_: Any) -> str:
        raise RuntimeError("Could not get share link")

    monkeypatch.setattr(networking, "setup_tunnel", nobody)
    with pytest.raises(UserError, match=r"no public address .Could not get share link.: leave --share out"):
        share("127.0.0.1", 7860)


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
