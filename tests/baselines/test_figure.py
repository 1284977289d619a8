"""The image for the README comes out, the same each time, with samples that nobody chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from baselines import figure
from baselines.page.run_folder import read_run_folder
from emu3.errors import UserError

MakeRun = Callable[..., Path]


@pytest.fixture
def run_folder(make_run: MakeRun) -> Path:
    values = {"sft": [float(place % 7) for place in range(42)], "rl": [None, *(place / 5 for place in range(1, 42))]}
    folder = make_run(values)
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 1.0}\n{"step": 2, "reward": 2.0}\n')
    return folder


def test_draws_a_png_reproducibly(run_folder: Path, tmp_path: Path) -> None:
    first = figure.run(run_folder, output=tmp_path / "a.png", candidate="rl", reference="sft", resamples=100)
    second = figure.run(run_folder, output=tmp_path / "b.png", candidate="rl", reference="sft", resamples=100)
    with Image.open(first) as image:
        assert image.format == "PNG" and image.width > 1000
    assert first.read_bytes() == second.read_bytes()


def test_shows_fixed_ranks_of_the_candidates_scores(run_folder: Path) -> None:
    """Guards against a choice by eye, and against a sample that one of the two models has no score for."""
    shown = figure._ranked(read_run_folder(run_folder), "simple", "rl", "sft")
    # 20 even rows have scores of both, from 0.4 (row 2) to 8.0 (row 40).
    assert [sample["rl"][2] for sample in shown] == pytest.approx([7.6, 6.0, 4.4, 2.4])
    assert all(sample["rl"][1].id == sample["sft"][1].id for sample in shown)


def test_without_a_reward_or_a_model_it_says_so(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scores of 'other'"):
        figure.run(run_folder, output=tmp_path / "a.png", candidate="other", reference="sft")
    (run_folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"no metrics.jsonl with a reward"):
        figure.run(run_folder, output=tmp_path / "a.png", candidate="rl", reference="sft")
    assert not (tmp_path / "a.png").exists()
