"""The report as a picture for a README: its head beside its gallery with two models side by side.

    python -m baselines.screenshot --report runs/x/report.html --one sft_s__rl_sc --two sft_s --output assets/report.png

Needs playwright (the extra `dev`) and a Chromium on the PATH. The gallery is sorted by nothing: the samples are the
first ones of the data that the filters let through.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from emu3.errors import UserError, run_main

WIDTH, HEIGHT, SCALE, GAP = 1000, 1130, 1.4, 24
"""CSS pixels of each half, device pixels per CSS pixel, and CSS pixels between the halves."""


def run(report: Path, *, one: str, two: str, output: Path, split: str = "") -> Path:
    """Write the picture; returns `output`. Raises `UserError` if there is no such page or model, or no browser."""
    # Imported here: playwright is a run-time dependency of this command alone.
    from playwright.sync_api import sync_playwright

    from emu3.demo.screenshot import find_browser
    from rl.watch.screenshot import write_beside

    browser = find_browser()
    if browser is None:
        raise UserError("there is no chromium on the PATH to open the report with")
    if not report.is_file():
        raise UserError(f"{report} does not exist: run baselines.report first")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE)
        page.goto(report.resolve().as_uri())
        head = page.screenshot()
        # A page with one split does not show the field.
        for field, value in ([("split", split)] if split else []) + [("one", one), ("two", two)]:
            if value not in page.locator(f"#{field} option").evaluate_all("options => options.map(o => o.value)"):
                raise UserError(f"{report} has no {value!r} to show")
            page.select_option(f"#{field}", value)
        page.evaluate("document.getElementById('gallery').scrollIntoView()")
        page.wait_for_function("() => [...document.images].slice(0, 9).every(image => image.complete)")
        gallery = page.screenshot()
        chromium.close()
    write_beside([head, gallery], round(GAP * SCALE), output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description="Photograph a report.", allow_abbrev=False)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--one", required=True, help="model that is shown first")
    parser.add_argument("--two", required=True, help="model that is shown beside it")
    parser.add_argument("--split", default="", help="show samples of this split only")
    parser.add_argument("--output", type=Path, required=True)
    print(run(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_main(main)
