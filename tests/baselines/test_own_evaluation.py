"""An editor, benchmark, metric and wording of somebody's own: the templates of docs/templates, by the commands."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_judge import FakeJudge
from noise_images import noise
from PIL import Image, ImageOps

from baselines import evaluate, score, table
from baselines.results.records import Prediction, ScoredSample, read_records, read_settings
from emu3.errors import UserError
from emu3.extensions import _load
from emu3.tokenizer.images import fit_image

TEMPLATES = Path(__file__).parents[2] / "docs" / "templates"
COLUMNS = ("--edited-image-key", "output", "--image-area", "256")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(module: object, *arguments: str | Path) -> None:
        _load.cache_clear()  # each command imports for itself
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        module.main()  # type: ignore[attr-defined]

    return run


def test_an_editor(
    make_data: Callable[..., Path], tmp_path: Path, judge: FakeJudge, command: Callable[..., None]
) -> None:
    """From the command line to a table that says which source made the images; another source is another run."""
    data = make_data(rows=3, instruction=["upside down"] * 3)
    file = tmp_path / "mine.py"
    shutil.copy(TEMPLATES / "editor.py", file)
    options = ("--editor", f"{file}:Flip", "--data", data, "--output-dir", tmp_path / "flip", *COLUMNS)
    command(evaluate, *options)
    rows = read_records(tmp_path / "flip" / "predictions.parquet", Prediction)
    assert [row.model for row in rows] == ["Flip"] * 3
    expected = fit_image(ImageOps.flip(noise(0)), 256, 8)
    assert Image.open(tmp_path / "flip" / rows[0].edited).tobytes() == expected.tobytes()
    [(name, digest)] = read_settings(tmp_path / "flip" / "predictions.parquet")["extensions"].items()
    assert name == f"{file}:Flip" and len(digest) == 64

    command(score, "--predictions", tmp_path / "flip", "--judge-url", judge.url)
    command(table, "--scores", tmp_path / "flip" / "scores.parquet", "--output-dir", tmp_path / "table")
    assert digest[:8] in next((tmp_path / "table").glob("*.md")).read_text()

    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(UserError, match="extensions"):
        command(evaluate, *options)


def test_a_benchmark(make_data: Callable[..., Path], tmp_path: Path, command: Callable[..., None]) -> None:
    """Its columns, and of the rows those that its rules keep."""
    data = make_data(rows=4)
    names = ("--original-image-key", "input", "--edited-image-key", "output", "--edit-instruction-key", "instruction")
    benchmark = tmp_path / "mine.py"
    text = (TEMPLATES / "benchmark.py").read_text()
    benchmark.write_text(text.replace('where=("kind", "plants")', 'where=("task", "colour")'))
    options = ("--task-key", "task", "--image-area", "256", "--output-dir", tmp_path / "garden")
    command(evaluate, "--editor", "no-edit", "--benchmark", f"{benchmark}:GARDEN", "--data", data, *names, *options)
    rows = read_records(tmp_path / "garden" / "predictions.parquet", Prediction)
    assert {row.benchmark for row in rows} == {"garden"}
    assert sorted(row.instruction for row in rows) == ["change number 1", "change number 3"]


def test_a_metric(make_run: Callable[..., Path], command: Callable[..., None]) -> None:
    """Under its own name beside the others, with its source; made anew once that changes is refused, not mixed."""
    folder = make_run({"m": [1.0, 2.0]}) / "eval" / "m"
    (folder / "scores.parquet").unlink()
    mine = folder.parent / "mine.py"
    shutil.copy(TEMPLATES / "metric.py", mine)
    command(score, "--predictions", folder, "--metrics", "l1", f"{mine}:ChangedPixels")
    rows = read_records(folder / "scores.parquet", ScoredSample)
    values = [row.value for row in rows if row.metric == "changed_pixels"]
    assert len(values) == 2 and all(value is not None and value > 0.9 for value in values)
    assert {row.metric for row in rows} == {"l1", "changed_pixels"}
    mine.write_text(mine.read_text().replace("THRESHOLD = 16", "THRESHOLD = 32"))
    with pytest.raises(UserError, match="metric changed_pixels"):
        command(score, "--predictions", folder, "--metrics", f"{mine}:ChangedPixels")


def test_a_wording(make_run: Callable[..., Path], judge: FakeJudge, command: Callable[..., None]) -> None:
    folder = make_run({"m": [1.0]}) / "eval" / "m"
    (folder / "scores.parquet").unlink()
    wording = f"{TEMPLATES / 'wording.py'}:SHORT"
    command(score, "--predictions", folder, "--judge-url", judge.url, "--prompts", wording)
    assert len(judge.bodies) == 2
    assert all("First score, 0 to 10" in body["messages"][0]["content"][0]["text"] for body in judge.bodies)
    assert read_records(folder / "scores.parquet", ScoredSample)[0].value == pytest.approx(9)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--editor", "{}/editor.py:Flop", "the nearest is Flip"),
        (
            "--editor",
            "{}/metric.py:ChangedPixels",
            "its edit: it is missing; see baselines",
        ),
        ("--benchmark", "{}/benchmark.py:Subset", "expected a baselines.benchmarks.spec.Benchmark, got a type"),
        ("--benchmark", "gadren", "no benchmark 'gadren'; there are data, omniedit"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    make_data: Callable[..., Path],
    tmp_path: Path,
    command: Callable[..., None],
    option: str,
    value: str,
    words: str,
) -> None:
    """And nothing is written."""
    given = {"--editor": "no-edit", "--data": str(make_data(rows=1)), "--output-dir": str(tmp_path / "out")}
    given |= {option: value.format(TEMPLATES)}
    with pytest.raises(UserError, match=words) as error:
        command(evaluate, *(word for pair in given.items() for word in pair), *COLUMNS)
    assert "\n" not in str(error.value) and not list((tmp_path / "out").glob("*"))


def test_a_metric_may_not_take_anothers_name(make_run: Callable[..., Path], command: Callable[..., None]) -> None:
    folder = make_run({"m": [1.0]}) / "eval" / "m"
    (folder / "scores.parquet").unlink()
    mine = folder.parent / "mine.py"
    mine.write_text((TEMPLATES / "metric.py").read_text().replace('"changed_pixels"', '"l1"'))
    with pytest.raises(UserError, match="its name 'l1' is that of another one"):
        command(score, "--predictions", folder, "--metrics", f"{mine}:ChangedPixels")
