"""What the plan says, against what is then made, asked and written; with a judge that counts for itself."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_judge import FakeJudge
from noise_images import IMAGE, noise, png
from PIL import Image

from baselines import evaluate, score
from baselines.reproduce.left import DISK_ROUNDING, image_rule
from baselines.reproduce.plan import Cell, Plan, cells_of, plan_of

AURORA = Path(__file__).parents[3] / "../shared/data/aurora-bench-dev.parquet"
JUDGE = "gpt-4o-mini-2024-07-18"
REPLY_TOKENS, PRICES = 21, (0.15, 0.6)


@dataclass
class Table:
    """A list of models on one benchmark. wording: a folder with the published wording's layout."""

    folder: Path
    judge: FakeJudge
    wording: Path

    def cells(self, protocol: str, models: str, *more: str) -> list[Cell]:
        (self.folder / "models.txt").write_text(models)
        asked = ["--judge-url", self.judge.url, "--judge-model", JUDGE, "--protocol", protocol]
        asked += ["--usd-per-million-tokens", *map(str, PRICES)]
        asked += ["--prompts", str(self.wording)] if protocol == "published" else []
        data = ["--data-dir", str(self.folder / "data"), *more]
        return cells_of(self.folder / "models.txt", ["aurora"], self.folder / protocol, 0, data, asked)

    def plan(self, cells: list[Cell]) -> Plan:
        return plan_of(cells, cells[0].folder.parents[1], reply_tokens=REPLY_TOKENS)


def usage(body: Any) -> dict[str, int]:
    """A judge's own count: 4 bytes of text are a token, an image is 2,833 and 5,667 for each 512 pixels of each side
    that it has begun."""
    text, *images = body["messages"][0]["content"]
    total = ceil(len(text["text"].encode()) / 4)
    for image in images:
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as opened:
            total += 2833 + 5667 * ceil(opened.width / 512) * ceil(opened.height / 512)
    return {"prompt_tokens": total, "completion_tokens": REPLY_TOKENS}


def used(cells: list[Cell], name: str) -> float:
    """What the usage files of the cells say, summed."""
    files = [cell.folder / "usage.jsonl" for cell in cells]
    return sum(json.loads(line)[name] for file in files for line in file.read_text().splitlines())


@pytest.fixture
def table(tmp_path: Path, judge: FakeJudge) -> Table:
    judge.name, judge.count_tokens = JUDGE, usage
    texts = {"context_no_delimit.txt": "Look at what follows.", "prompts_0shot/two_image_edit_rule.txt": "Two images."}
    texts |= {"prompts_0shot/tie_rule_SC.txt": "Edit: <instruction>", "prompts_0shot/rule_PQ.txt": "Is it natural?"}
    for name, text in texts.items():
        file = tmp_path / "VIEScore/viescore/prompts_raw" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Table(tmp_path, judge, tmp_path / "VIEScore")


def run(cells: list[Cell]) -> None:
    for cell in cells:
        evaluate.run(**evaluate.arguments_of(cell.evaluate))
        score.run(**score.arguments_of(cell.score))


def images_in(cells: list[Cell]) -> int:
    return sum(len(list(cell.folder.rglob("*-edited.png"))) for cell in cells)


def bytes_in(cells: list[Cell]) -> int:
    return sum(file.stat().st_size for cell in cells for file in cell.folder.rglob("*") if file.is_file())


def hold_against_what_was_used(table: Table, protocol: str, *more: str) -> None:
    cells = table.cells(protocol, "floor no-edit\ntruth ground-truth\n", *more)
    plan = table.plan(cells)
    assert plan.missing == [] and plan.whole.made == 0
    run(cells)
    assert images_in(cells) == plan.whole.images
    assert table.judge.questions == used(cells, "requests") == plan.whole.questions
    assert used(cells, "prompt_tokens") == plan.whole.tokens
    assert abs(bytes_in(cells) - plan.whole.bytes) <= DISK_ROUNDING * plan.whole.bytes
    assert plan.usd(PRICES, plan.whole) == pytest.approx(used(cells, "usd"))
    again = table.plan(cells).whole
    assert (again.images, again.questions, again.tokens, again.bytes) == (0, 0, 0, 0) and again.made == plan.whole.of
    run(cells)
    assert table.judge.questions == plan.whole.questions


@pytest.mark.parametrize("protocol", ["ours", "published"])
def test_what_is_planned_is_what_is_used(table: Table, protocol: str, make_data: Callable[..., Path]) -> None:
    """Guards the figures that a person pays by: equal images and questions that are asked once, rows without a target,
    the source before its crop."""
    sizes = [(64, 48), (50, 75), (516, 127), (33, 90)]  # the third loses a tile of 512 pixels by its crop
    stored = [{"bytes": png(noise(row, *sizes[row % 4])), "path": None} for row in range(9)]
    columns = {
        "input": pa.array([stored[3] if row == 7 else image for row, image in enumerate(stored)], IMAGE),
        "output": pa.array([None if row in (1, 6) else image for row, image in enumerate(stored)], IMAGE),
        "instruction": [f"  change {'number' if row in (3, 7) else row}\n now" for row in range(9)],
        "source": ["ag"] * 9,
    }
    (table.folder / "data").mkdir()
    make_data(9, **columns).rename(table.folder / "data/aurora.parquet")
    hold_against_what_was_used(table, protocol)


@pytest.mark.slow
@pytest.mark.skipif(not AURORA.exists(), reason="the AURORA-Bench sample is not here")
@pytest.mark.parametrize("protocol", ["ours", "published"])
def test_on_photographs(table: Table, protocol: str) -> None:
    """Guards the same on real samples, whose sizes are no multiples of anything: on 15, with EARL_SLOW=1 on all 200."""
    (table.folder / "data").mkdir()
    (table.folder / "data/aurora.parquet").symlink_to(AURORA.resolve())
    hold_against_what_was_used(table, protocol, *(() if os.environ.get("EARL_SLOW") else ("--limit", "15")))


def test_what_is_there_is_left_out(
    table: Table, make_data: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards a plan in the middle: images without scores are known by their pixels, replies by their questions, rates
    and lengths of replies by what was measured."""
    (table.folder / "data").mkdir()
    make_data(6, source=["ag"] * 6).rename(table.folder / "data/aurora.parquet")
    cells = table.cells("ours", "floor no-edit\n")
    evaluate.run(**evaluate.arguments_of(cells[0].evaluate))
    (cells[0].folder / "predictions.parquet").unlink()
    evaluate.run(**evaluate.arguments_of(cells[0].evaluate))
    assert "floor on aurora: 6 of 6 images are there, it goes on" in capsys.readouterr().out
    evaluate.run(**evaluate.arguments_of(cells[0].evaluate))
    assert "floor on aurora: all 6 images are there, none is made" in capsys.readouterr().out
    made = table.plan(cells).whole
    assert (made.images, made.made, made.questions) == (0, 6, 12)
    run(cells)
    (cells[0].folder / "scores.parquet").unlink()
    answers = cells[0].folder / "answers.jsonl"
    kept = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(kept[:7]))
    assert table.plan(cells).whole.questions == 5

    both = table.cells("ours", "floor no-edit\nother command --command 'cp {input} {output} {instruction}'\n")
    plan = plan_of(both, both[0].folder.parents[1])
    assert plan.reply == (REPLY_TOKENS, "as measured here")
    assert plan.left["other"].seconds is None and plan.left["other"].questions == 12
    rated = plan_of(both, both[0].folder.parents[1], seconds_per_image=2.5)
    assert rated.left["other"].seconds == 15.0 and rated.left["floor"].seconds == 0.0
    picking = table.cells("ours", "best emu3 --model . --best-of 4 --judge-url http://x/v1 --judge-model m\n")
    assert table.plan(picking).whole.picks == 6 * 8


def test_images_have_tokens_by_the_judges_rule() -> None:
    """Guards the published rules by figures that were measured on the judges themselves: an image of 128x64 pixels has
    8,500 and 255 tokens, one of 1024x1024 has 765 at gpt-4o; nothing is invented for others."""
    mini, large, qwen = (image_rule(name) for name in (JUDGE, "gpt-4o-2024-11-20", "Qwen/Qwen2.5-VL-72B-Instruct"))
    assert mini is not None and large is not None and qwen is not None
    assert (mini((128, 64)), large((128, 64)), large((1024, 1024)), large((2048, 4096))) == (8500, 255, 765, 1105)
    assert qwen((256, 256)) == 9 * 9 + 2 and qwen((308, 224)) == 11 * 8 + 2
    assert image_rule("somebody/else") is None
