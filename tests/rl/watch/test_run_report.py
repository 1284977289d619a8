"""The page of a run, at any moment of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from run_lines import NOTHING, line, write_run

from dev.screenshots import find_browser
from emu3.errors import UserError
from emu3.report.run_page import REFRESH
from rl.watch.report import write_report


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_a_run_that_goes_on_is_loaded_again_and_a_finished_one_is_not(tmp_path: Path) -> None:
    refresh = f'<meta http-equiv="refresh" content="{REFRESH}">'
    running = page_of(write_run(tmp_path / "r", [line(step) for step in range(30)], 40))
    assert refresh in running and "Running · step 30 of 40" in running and "<dt>Left</dt><dd>20 min" in running
    finished = page_of(write_run(tmp_path / "r", [line(step) for step in range(40)], 40))
    assert refresh not in finished and "Finished · step 40 of 40" in finished and "Left" not in finished


def test_the_page_needs_nothing_but_the_images_beside_it(tmp_path: Path) -> None:
    """It is opened from a disk without a network: no address, no file of its own elsewhere."""
    run = write_run(tmp_path / "r", [line(step) for step in range(3)], 40)
    (run / "pictures").mkdir()
    for step in (0, 50):
        (run / "pictures" / f"step_{step:06d}.png").touch()
    page = page_of(run)
    assert "http://" not in page and "https://" not in page and '<link rel="icon" href="data:,">' in page
    assert re.findall(r'src="([^"]*)"', page) == ["pictures/step_000050.png"]
    assert '<a class="enlarge" href="pictures/step_000000.png">0</a>' in page


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_run_in_which_nothing_was_scored_has_a_page(tmp_path: Path, steps: int) -> None:
    """A judge that is away from the first step on is when one looks at the page; unknown is a dash, not a curve."""
    page = page_of(write_run(tmp_path / "r", [line(step, **NOTHING) for step in range(steps)], 9))
    assert "<dt>Reward</dt><dd>–</dd>" in page and "rollouts without a score 1" in page
    assert "KL to the start" not in page and "nan" not in page


def test_figures_that_a_run_has_not_are_left_out_and_flat_ones_are_said(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "r", [line(step, probe_gap=None) for step in range(5)], 9))
    assert "new weights" not in page and "KL to the start" in page
    assert "<figcaption>Completion length" not in page and "completion length 1060" in page


def test_lines_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    """Runs outlive releases: what came later may be absent."""
    later = ("sampled_tokens", "trained_tokens", "judge", "probe_gap")
    lines = [{key: value for key, value in line(step).items() if key not in later} for step in range(5)]
    page = page_of(write_run(tmp_path / "r", lines, 9))
    assert "Tokens per second" not in page and "Seconds per step" in page


def test_text_of_a_run_is_text_on_the_page(tmp_path: Path) -> None:
    """Tasks, part names and settings come from data and configs, and the judge's address may hold a key."""
    lines = [line(step, reward_by_task={"<b>x": 1.0}, parts={"a&b/c": 2.0}) for step in range(3)]
    page = page_of(write_run(tmp_path / "<i>", lines, 9, judge={"base_url": "http://me:key@host:1/v1"}))
    assert "<b>x" not in page and "&lt;b&gt;x" in page and "a&amp;b/c" in page and "<i>" not in page.split("</h1>")[0]
    assert "key" not in page and "http://host:1/v1" in page


def test_the_page_is_made_from_the_two_files_alone_and_does_not_grow(tmp_path: Path) -> None:
    """A page that holds every step is slow to write in the middle of training and to open."""
    small = len(page_of(write_run(tmp_path / "a", [line(step) for step in range(500)], 9000)))
    large = len(page_of(write_run(tmp_path / "b", [line(step) for step in range(8000)], 9000)))
    assert large < 1.2 * small


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no step yet"):
        write_report(write_run(tmp_path / "r", [], 9))


@pytest.mark.skipif(find_browser() is None, reason="no browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_in_a_browser_without_a_complaint(tmp_path: Path, scheme: str) -> None:
    """Nothing overflows a phone, charts have colours in both schemes, and a page of a dead run says how old it is."""
    playwright = pytest.importorskip("playwright.sync_api")
    run = write_run(tmp_path / "r", [line(step) for step in range(30)], 40)
    os.utime(run / "metrics.jsonl", (1e9, 1e9))
    address = write_report(run).as_uri()
    said: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        width = page.evaluate("document.documentElement.scrollWidth")
        stroke = page.eval_on_selector("path.smooth", "path => getComputedStyle(path).stroke")
        age = page.inner_text("#age")
        browser.close()
    assert not said and width <= 390
    assert stroke == ("rgb(194, 65, 12)" if scheme == "light" else "rgb(255, 154, 92)")
    assert "days before this page was loaded" in age
