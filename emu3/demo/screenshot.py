"""Use the page as a person does, in a headless Chromium: for the picture in assets/ and for the test of the page.

    bash scripts/demo.sh --model MODEL --vision VISION &
    python -m emu3.demo.screenshot http://127.0.0.1:7860 photo.png "make the sky purple" -o assets/demo.png

Playwright drives the Chromium or Chrome that the system has, and downloads none. What the page asks of any other host
than its own is refused and counted.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Page, Route, sync_playwright

from emu3.errors import UserError, run_main
from emu3.files import whole_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VIEWPORT_WIDTH, VIEWPORT_HEIGHT = 1280, 900
MARGIN = 24  # pixels below the page's last part


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def opened(url: str) -> Iterator[tuple[Page, list[str]]]:
    """The page at `url` when it is ready, and the growing list of addresses elsewhere that it asked for.

    Raises UserError if there is no browser or nothing answers at `url`.
    """
    browser_path = find_browser()
    if browser_path is None:
        raise UserError(f"no browser found: install one of {', '.join(BROWSERS)}")
    home = urlsplit(url).netloc
    elsewhere: list[str] = []

    def guard(route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.netloc == home or address.scheme in ("data", "blob"):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        try:
            context = browser.new_context(viewport={"width": VIEWPORT_WIDTH, "height": VIEWPORT_HEIGHT})
            context.set_default_timeout(120_000)  # milliseconds: a busy computer is not an error
            context.route("**/*", guard)
            page = context.new_page()
            try:
                page.goto(url)
            except BrowserError as error:
                raise UserError(
                    f"{url} does not answer ({error.message.splitlines()[0]}); start the page first"
                ) from error
            page.get_by_role("button", name="Edit", exact=True).wait_for()
            yield page, elsewhere
        finally:
            browser.close()


def ask(page: Page, instruction: str, picture: Path | None = None, samples: int = 4, think: bool = False) -> None:
    """Fill in the form and press the button; returns at once."""
    if picture is not None:
        page.locator("#source input[type=file]").set_input_files(picture)
        page.locator("#source img").wait_for()
    page.get_by_label("Instruction").fill(instruction)
    page.get_by_label("number input for Samples").fill(str(samples))
    page.get_by_label("Think first").set_checked(think)
    page.get_by_role("button", name="Edit", exact=True).click()


def wait_for_edits(page: Page, samples: int, seconds: float = 300) -> None:
    """Until the page shows `samples` edits and the first beside its source; UserError if that takes longer."""
    try:
        page.wait_for_function(
            """samples => {
                const edits = [...document.querySelectorAll("#edits button img")];
                const pair = [...document.querySelectorAll("#compare img")];
                const loaded = image => image.complete && image.naturalWidth > 0;
                return edits.length === samples && pair.length === 2 && [...edits, ...pair].every(loaded);
            }""",
            arg=samples,
            timeout=seconds * 1000,
        )
    except BrowserError as error:
        said = page.locator(".toast-body").all_inner_texts()
        raise UserError(f"no {samples} edits after {seconds:.0f} s; the page says {said or 'nothing'}") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m emu3.demo.screenshot", description="Take a picture of the page.")
    parser.add_argument("url", help="where the page is served")
    parser.add_argument("picture", type=Path, help="the picture to edit")
    parser.add_argument("instruction")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--samples", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--think", action="store_true", help="with a chain of thought")
    arguments = parser.parse_args()
    with opened(arguments.url) as (page, _), whole_file(arguments.output) as temporary:
        ask(page, arguments.instruction, arguments.picture, arguments.samples, arguments.think)
        wait_for_edits(page, arguments.samples)
        page.mouse.move(0, 0)
        bottom = page.eval_on_selector_all(
            ".block", "all => Math.max(...all.map(e => e.getBoundingClientRect().bottom))"
        )
        page.screenshot(
            path=temporary,
            type="png",
            animations="disabled",
            clip={"x": 0, "y": 0, "width": VIEWPORT_WIDTH, "height": min(bottom + MARGIN, VIEWPORT_HEIGHT)},
        )


if __name__ == "__main__":
    run_main(main)
