"""The report of a run as a picture for a README: its head beside its pictures.

    python -m rl.watch.screenshot runs/x/report.html -o assets/rl_report.png

Needs playwright (the extra `dev`) and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from emu3.demo.screenshot import find_browser
from emu3.errors import UserError, run_main
from emu3.files import whole_file

WIDTH, HEIGHT, SCALE, GAP = 1000, 1060, 1.4, 24
"""CSS pixels of each half, device pixels per CSS pixel, and CSS pixels between the halves."""


def take(report: Path, output: Path) -> Path:
    """Write the picture; returns `output`. Raises UserError if there is no such page, or no browser."""
    browser = find_browser()
    if browser is None:
        raise UserError("there is no chromium on the PATH to open the report with")
    if not report.is_file():
        raise UserError(f"{report} does not exist: run rl.watch.report first")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE)
        page.goto(report.resolve().as_uri())
        halves = [page.screenshot()]
        if page.locator("#pictures").count():
            page.evaluate("document.getElementById('pictures').scrollIntoView()")
            page.wait_for_function("() => [...document.images].every(image => image.complete)")
            halves.append(page.screenshot())
        chromium.close()
    write_beside(halves, round(GAP * SCALE), output)
    return output


def write_beside(shots: Sequence[bytes], gap: int, output: Path) -> None:
    """Write PNG screenshots of one size beside each other, `gap` pixels apart, in few colours."""
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    step = images[0].width + gap
    picture = Image.new("RGB", (step * len(images) - gap, images[0].height), "white")
    for place, image in enumerate(images):
        picture.paste(image, (place * step, 0))
    with whole_file(output) as temporary:
        picture.quantize(256).save(temporary, format="png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Photograph the report of a training run.", allow_abbrev=False)
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    print(take(arguments.report, arguments.output))


if __name__ == "__main__":
    run_main(main)
