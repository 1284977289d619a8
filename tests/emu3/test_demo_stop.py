"""Stop, and visitors who leave, with a model that would go on for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("playwright")
import uvicorn

from dev import screenshots
from emu3.demo.__main__ import application
from emu3.demo.page import build_page
from emu3.mllm.editor import EditedImage

pytestmark = pytest.mark.skipif(screenshots.find_browser() is None, reason="no Chromium is installed")


class Endless:
    """An editor that writes tokens until somebody stops it, but for the instruction "at once"."""

    image_area = 576
    codec = SimpleNamespace(factor=8)

    def __init__(self) -> None:
        self.model = SimpleNamespace(model=torch.nn.Identity())
        self.ended = threading.Semaphore(0)

    def edit(self, images: list[Any], instructions: list[str], *, n: int, **_: Any) -> list[list[EditedImage]]:
        try:
            while instructions != ["at once"]:
                self.model.model(torch.zeros(1))
                time.sleep(0.01)  # the server has its thread beside this one
        finally:
            self.ended.release()
        return [[EditedImage(Image.new("RGB", (24, 16), "red"), None)] * n]


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Endless, str]]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    editor = Endless()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = application(build_page(editor, "A test."), tmp_path)  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield editor, f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def ask(page: screenshots.Page, instruction: str, image: Path | None = None) -> None:
    screenshots.ask(page, instruction, image, samples=1)


def test_stop_ends_the_edit_and_takes_one_that_waits_out_of_the_queue(
    endless: tuple[Endless, str], tmp_path: Path
) -> None:
    """A stopped edit held the model to its end, while its visitor and all others waited."""
    _, url = endless
    photo = tmp_path / "photo.png"
    Image.new("RGB", (24, 16), "blue").save(photo)
    with screenshots.opened(url) as (first, _):
        browser = first.context.browser
        assert browser is not None
        # Browsers of their own: one has six connections to a server, and a visit keeps two of them.
        second, third = browser.new_page(), browser.new_page()
        for page in (second, third):
            page.goto(url)
            page.get_by_role("button", name="Edit", exact=True).wait_for()
        ask(first, "for ever", photo)
        first.get_by_text("of at most 6 tokens").first.wait_for()
        ask(second, "for ever", photo)
        second.get_by_text("queue: 1/1").first.wait_for()
        ask(third, "at once", photo)
        third.get_by_text("queue: 2/2").first.wait_for()
        second.get_by_role("button", name="Stop").click()
        second.get_by_text("queue: ").first.wait_for(state="detached")
        first.get_by_role("button", name="Stop").click()
        screenshots.wait_for_edits(third, 1)
        assert first.locator("#edits button img").count() == 0
        first.get_by_text("of at most 6 tokens").first.wait_for(state="detached")
        ask(first, "at once")
        screenshots.wait_for_edits(first, 1)


def test_the_model_is_free_when_its_visitor_leaves(endless: tuple[Endless, str], tmp_path: Path) -> None:
    """A closed tab held the model for minutes: nobody was there to see what it made."""
    editor, url = endless
    photo = tmp_path / "photo.png"
    Image.new("RGB", (24, 16), "blue").save(photo)
    with screenshots.opened(url) as (page, _):
        leaving = page.context.new_page()
        leaving.goto(url)
        leaving.get_by_role("button", name="Edit", exact=True).wait_for()
        ask(leaving, "for ever", photo)
        leaving.get_by_text("of at most 6 tokens").first.wait_for()
        leaving.close()
        assert editor.ended.acquire(timeout=300)
        ask(page, "at once", photo)
        screenshots.wait_for_edits(page, 1)
