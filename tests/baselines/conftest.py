"""A benchmark of a few noise images as Parquet, score files made by hand, and a judge that says what it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_judge import FakeJudge
from noise_images import IMAGE, noise, png

from baselines.results.records import Prediction, ScoredSample, write_records


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Path]:
    """`make_data(rows=..., **columns)` writes a benchmark; a column given replaces the made one, None drops it."""

    def make(rows: int = 5, **columns: Any) -> Path:
        table: dict[str, Any] = {
            "id": [f"sample-{row}" for row in range(rows)],
            "input": pa.array([{"bytes": png(noise(row)), "path": None} for row in range(rows)], IMAGE),
            "output": pa.array([{"bytes": png(noise(100 + row)), "path": None} for row in range(rows)], IMAGE),
            "instruction": [f"change number {row}" for row in range(rows)],
            "task": ["colour" if row % 2 else "counting" for row in range(rows)],
            "split": ["simple" if row % 2 else "complex" for row in range(rows)],
        }
        table = {name: column for name, column in (table | columns).items() if column is not None}
        path = tmp_path / "data.parquet"
        pq.write_table(pa.table(table), path)
        return path

    return make


@pytest.fixture(scope="session")
def score_maker() -> Callable[..., ScoredSample]:
    """`make_score` for fixtures that live longer than a test."""

    def make(id: str, value: float | None, **fields: Any) -> ScoredSample:
        parts = {} if value is None else {"sc": value, "pq": value}
        defaults = {
            "benchmark": "data",
            "split": "simple",
            "task": "colour",
            "source_set": "",
            "model": "m",
            "editor": "emu3",
            "metric": "viescore",
            "status": "unparsable" if value is None else "score",
            "parts": parts,
            "answers": {},
            "detail": "words" if value is None else None,
        }
        return ScoredSample(id=id, value=value, **(defaults | fields))

    return make


@pytest.fixture
def make_score(score_maker: Callable[..., ScoredSample]) -> Callable[..., ScoredSample]:
    return score_maker


@pytest.fixture
def make_run(tmp_path: Path, make_score: Callable[..., ScoredSample]) -> Callable[..., Path]:
    """`make_run(values={model: [value or None per sample]})` writes predictions and scores as the steps would."""

    def make(values: dict[str, list[float | None]], instruction: str = "paint it red", size: int = 16) -> Path:
        folder = tmp_path / "run"
        for model, numbers in values.items():
            place = folder / "eval" / model
            place.mkdir(parents=True)
            editor = model if model in ("no-edit", "ground-truth") else "emu3"
            predictions, scores = [], []
            for row, value in enumerate(numbers):
                names = {kind: f"{row}-{kind}.png" for kind in ("source", "edited", "target")}
                for kind, seed in zip(names, (row, row + len(model) * 50, row + 1000), strict=True):
                    noise(seed, size, size).save(place / names[kind])
                shared: dict[str, Any] = {
                    "id": f"sample-{row}",
                    "benchmark": "data",
                    "split": "complex" if row % 2 else "simple",
                    "task": "counting" if row % 2 else "colour",
                    "source_set": "",
                    "model": model,
                    "editor": editor,
                }
                about: dict[str, Any] = {"instruction": instruction, "seed": 0, "seconds": 0.1, "reasoning": None}
                predictions.append(Prediction(**shared, **names, **about))
                scores.append(make_score(value=value, **shared))
            write_records(place / "predictions.parquet", predictions, {})
            write_records(place / "scores.parquet", scores, {"judge": "the judge"})
        return folder

    return make


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    judge = FakeJudge()
    yield judge
    judge.close()


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """The folder of five predictions, scored by nobody; the last has no target."""
    folder = tmp_path / "out"
    folder.mkdir()
    rows = []
    for row in range(5):
        names: dict[str, Any] = {kind: f"{row}-{kind}.png" for kind in ("source", "edited", "target")}
        for place, name in enumerate(names.values()):
            noise(10 * row + place).save(folder / name)
        if row == 4:
            names["target"] = None
        rows.append(
            Prediction(
                id=f"sample-{row}",
                benchmark="data",
                split="simple" if row % 2 else "complex",
                task="colour" if row % 2 else "counting",
                source_set="north" if row < 2 else "south",
                instruction=f"change number {row}",
                **names,
                model="m",
                editor="emu3",
                seed=0,
                seconds=0.1,
                reasoning=None,
            )
        )
    write_records(folder / "predictions.parquet", rows, {})
    return folder
