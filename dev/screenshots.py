"""The pages as images for a README, taken in a headless Chromium: the demo in use, the reports of a training and of an
evaluation.

    python -m dev.screenshots quickstart runs/quickstart -o assets --looks looks      all that the README shows

    bash scripts/demo.sh --model MODEL --vision VISION &
    python -m dev.screenshots demo http://127.0.0.1:7860 photo.png "make the sky purple" -o assets/demo.png
    python -m dev.screenshots training runs/x/report.html -o assets/rl_report.png
    python -m dev.screenshots evaluation runs/x/report.html --one sft_s__rl_sc --two sft_s -o assets/report.png

`--looks` also takes each page at the width of a desk and of a phone, light and dark, for somebody to look at.

A report is shown by its head beside its images. Those of an evaluation are sorted by nothing: the samples are the first
ones of the data that the filters let through.

Playwright (the extra `dev`) drives the Chromium or Chrome that the system has, and downloads none. What the demo's page
asks of any other host than its own is refused and counted.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from PIL import Image
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Page, Route, sync_playwright

from emu3.errors import UserError, run_main
from emu3.files import whole_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VIEWPORT_WIDTH, VIEWPORT_HEIGHT = 1280, 900
MARGIN = 24  # pixels below the page's last part
WIDTH, SCALE, GAP = 1000, 1.4, 24
"""Of a report: CSS pixels of each half, device pixels per CSS pixel, and CSS pixels between the halves."""
LOOKS = {1280: "desk", 390: "phone"}
TRAINING_HEIGHT, EVALUATION_HEIGHT = 1060, 1130


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def _browser() -> str:
    path = find_browser()
    if path is None:
        raise UserError(f"no browser found: install one of {', '.join(BROWSERS)}")
    return path


@contextmanager
def opened(url: str, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """The page at `url` when it is ready, and the growing list of addresses elsewhere that it asked for. options: of
    the browser's context.

    Raises UserError if there is no browser or nothing answers at `url`.
    """
    browser_path = _browser()
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
            viewport = {"width": VIEWPORT_WIDTH, "height": VIEWPORT_HEIGHT}
            context = browser.new_context(**{"viewport": viewport, **options})
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


def ask(page: Page, instruction: str, image: Path | None = None, samples: int = 4, think: bool = False) -> None:
    """Fill in the form and press the button; returns at once."""
    if image is not None:
        page.locator("#source input[type=file]").set_input_files(image)
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


def demo(url: str, image: Path, instruction: str, output: Path, samples: int = 4, think: bool = False) -> Path:
    """Write the image of the demo at `url` after an edit; returns `output`. Raises UserError as `opened`."""
    with opened(url) as (page, _), whole_file(output) as temporary:
        ask(page, instruction, image, samples, think)
        wait_for_edits(page, samples)
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
    return output


def training(report: Path, output: Path) -> Path:
    """Write the image of a training's report; returns `output`. Raises UserError without such a page or a browser."""

    def to_images(page: Page) -> bool:
        if not page.locator("#pictures").count():
            return False
        page.evaluate("document.getElementById('pictures').scrollIntoView()")
        page.wait_for_function("() => [...document.images].every(image => image.complete)")
        return True

    return _report(report, TRAINING_HEIGHT, to_images, output)


def evaluation(report: Path, output: Path, *, one: str, two: str, split: str = "") -> Path:
    """Write the image of an evaluation's report with two models beside each other, of samples of one split if it is
    given; returns `output`. Raises UserError without such a page, model or browser."""

    def to_gallery(page: Page) -> bool:
        # A page with one split does not show the field.
        for field, value in ([("split", split)] if split else []) + [("one", one), ("two", two)]:
            if value not in page.locator(f"#{field} option").evaluate_all("options => options.map(o => o.value)"):
                raise UserError(f"{report} has no {value!r} to show")
            page.select_option(f"#{field}", value)
        page.evaluate("document.getElementById('gallery').scrollIntoView()")
        page.wait_for_function("() => [...document.images].slice(0, 9).every(image => image.complete)")
        return True

    return _report(report, EVALUATION_HEIGHT, to_gallery, output)


def quickstart(run: Path, output: Path, looks: Path | None = None) -> Path:
    """Write all images of a README of a quickstart's folder into the folder `output`, which is returned. looks: a
    folder for each page at two widths in two schemes. Raises UserError as the others, and for an unfinished run."""
    model, start = "sft_s__rl_sc", "sft_s"
    held_out = run / "data/held_out.parquet"
    if not (held_out.is_file() and (run / "figure.png").is_file()):
        raise UserError(f"{run} is no finished quickstart: run scripts/quickstart.sh first")
    output.mkdir(parents=True, exist_ok=True)
    evaluation(run / "report.html", output / "report.png", one=model, two=start, split="complex")
    training(run / model / "report.html", output / "rl_report.png")
    shutil.copyfile(run / "figure.png", output / "quickstart.png")
    row = pq.read_table(held_out, columns=["input", "instruction"]).slice(0, 1).to_pylist()[0]
    with TemporaryDirectory() as folder, _served(run / model / "final") as url:
        source = Path(folder) / "source.png"
        source.write_bytes(row["input"]["bytes"])
        demo(url, source, row["instruction"], output / "demo.png")
        if looks is not None:
            looks.mkdir(parents=True, exist_ok=True)
            for (width, device), scheme in itertools.product(LOOKS.items(), ("light", "dark")):
                name = f"{device}-{scheme}.png"
                for report, of in ((run / "report.html", "report"), (run / model / "report.html", "rl_report")):
                    _look(report.resolve().as_uri(), looks / f"{of}-{name}", width, scheme)
                viewport = {"width": width, "height": VIEWPORT_HEIGHT}
                with opened(url, viewport=viewport, color_scheme=scheme) as (page, _):
                    ask(page, row["instruction"], source)
                    wait_for_edits(page, 4)
                    page.screenshot(path=looks / f"demo-{name}", full_page=True, animations="disabled")
    return output


@contextmanager
def _served(model: Path) -> Iterator[str]:
    """The address of a demo of `model`, for the length of a `with` block."""
    command = [sys.executable, "-m", "emu3.demo", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line.startswith("open "):
                raise UserError(f"the demo of {model} did not start")
            yield line.split()[1]
        finally:
            server.terminate()


def _look(url: str, output: Path, width: int, scheme: Any) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_browser(), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": VIEWPORT_HEIGHT}, color_scheme=scheme)
            page.goto(url)
            page.screenshot(path=output, full_page=True)
        finally:
            browser.close()


def _report(report: Path, height: int, to_images: Callable[[Page], bool], output: Path) -> Path:
    """The head of a page and, where `to_images` has gone to them, its images."""
    browser_path = _browser()
    if not report.is_file():
        raise UserError(f"{report} does not exist: write the report first")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": height}, device_scale_factor=SCALE)
            page.goto(report.resolve().as_uri())
            halves = [page.screenshot()]
            if to_images(page):
                halves.append(page.screenshot())
        finally:
            browser.close()
    _write_beside(halves, round(GAP * SCALE), output)
    return output


def _write_beside(shots: Sequence[bytes], gap: int, output: Path) -> None:
    """Write PNG screenshots of one size beside each other, `gap` pixels apart, in few colours."""
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    step = images[0].width + gap
    both = Image.new("RGB", (step * len(images) - gap, images[0].height), "white")
    for place, image in enumerate(images):
        both.paste(image, (place * step, 0))
    with whole_file(output) as temporary:
        both.quantize(256).save(temporary, format="png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.screenshots", description="Take an image of a page.")
    pages = parser.add_subparsers(required=True)
    of_demo = pages.add_parser("demo", help="the demo after an edit")
    of_demo.set_defaults(take=demo)
    of_demo.add_argument("url", help="where the page is served")
    of_demo.add_argument("image", type=Path, help="the image to edit")
    of_demo.add_argument("instruction")
    of_demo.add_argument("--samples", type=int, default=4, help="default: %(default)s")
    of_demo.add_argument("--think", action="store_true", help="with a chain of thought")
    of_training = pages.add_parser("training", help="the report of a training run")
    of_training.set_defaults(take=training)
    of_evaluation = pages.add_parser("evaluation", help="the report of an evaluation")
    of_evaluation.set_defaults(take=evaluation)
    of_evaluation.add_argument("--one", required=True, help="model that is shown first")
    of_evaluation.add_argument("--two", required=True, help="model that is shown beside it")
    of_evaluation.add_argument("--split", default="", help="show samples of this split only")
    of_quickstart = pages.add_parser("quickstart", help="all of a quickstart's folder, the demo served for it")
    of_quickstart.set_defaults(take=quickstart)
    of_quickstart.add_argument("run", type=Path)
    of_quickstart.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    of_quickstart.add_argument("--looks", type=Path, help="folder for each page at two widths in two schemes")
    for of_report in (of_training, of_evaluation):
        of_report.add_argument("report", type=Path)
    for of_page in (of_demo, of_training, of_evaluation):
        of_page.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    options = vars(parser.parse_args())
    print(options.pop("take")(**options))


if __name__ == "__main__":
    run_main(main)
