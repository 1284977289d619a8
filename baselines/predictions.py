"""Predictions on disk: one folder per batch, whole or absent, then one file over all of them.

    OUT/settings.json                    what the run was asked for; written with the first batch
    OUT/batches/000064/000070-edited.png the pictures of rows 64 ..., and rows.parquet
    OUT/predictions.parquet              written last: its presence says that all is there

An interrupted run goes on after its last whole batch. The batch's seed comes from the run's seed and its first row,
so the pictures are those of a run that was never interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from baselines.benchmarks.samples import Sample, Samples
from baselines.benchmarks.spec import Benchmark
from baselines.editors.protocol import Predictor
from baselines.records import PREDICTIONS_FILE, Prediction, read_records, refuse_other_settings, write_records
from emu3.errors import UserError
from emu3.files import read_json, whole_folder, write_json
from emu3.tokenizer.images import fit_image

FACTOR = 8
"""Sides of a judged picture are multiples of this, whoever edits: every row of a table sees the same sources."""

SETTINGS_FILE = "settings.json"
ROWS_FILE = "rows.parquet"


def batch_seed(seed: int, first_row: int) -> int:
    """Seed of the batch that begins at `first_row`, 32 bits."""
    return int(np.random.SeedSequence((seed, first_row)).generate_state(1)[0])


def as_judged(edited: Image.Image, shown: Image.Image, image_area: int, sample_id: str) -> Image.Image:
    """An editor's picture at the size of the source that the judge sees.

    A picture at another size, as editors without our tokenizer give it, goes through the source's own fit. Raises
    `UserError` if that leads elsewhere: the editor changed the frame.
    """
    if edited.size == shown.size:
        return edited.convert("RGB")
    fitted = fit_image(edited, image_area, FACTOR)
    if fitted.size != shown.size:
        raise UserError(f"sample {sample_id}: the edit is {edited.size} pixels, which does not fit {shown.size}")
    return fitted


@dataclass(frozen=True)
class Settings:
    """What a run was asked for. `data`, `model` and `vision` are fingerprints, since a path says little next week.

    `name` is the run's row in the tables, `image_area` is in pixels.
    """

    editor: str
    name: str
    benchmark: Benchmark
    data: str
    model: str | None
    vision: str | None
    limit: int | None
    seed: int
    batch_size: int
    temperature: float
    top_k: int | None
    think: bool
    image_area: int


def write_predictions(
    samples: Samples,
    rows: Sequence[int],
    make_predictor: Callable[[], Predictor],
    output_dir: Path,
    settings: Settings,
) -> Path:
    """Predict `rows` of `samples` in batches; returns the path of the predictions file.

    `make_predictor` is called only if a batch is missing, before anything is written. Raises `UserError` when
    `output_dir` holds a run with other settings.
    """
    asked = json.loads(json.dumps(asdict(settings)))
    settings_file = output_dir / SETTINGS_FILE
    if settings_file.exists():
        refuse_other_settings(output_dir, read_json(settings_file), asked)
    elif output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir} is not empty and holds no run of this command: choose another folder")
    whole = output_dir / PREDICTIONS_FILE
    if whole.exists():
        return whole

    folders = {start: output_dir / "batches" / f"{start:06d}" for start in range(0, len(rows), settings.batch_size)}
    missing = [start for start, folder in folders.items() if not folder.exists()]
    if missing:
        predictor = make_predictor()
        for start in missing:
            batch = {row: samples[row] for row in rows[start : start + settings.batch_size]}
            began = time.perf_counter()
            edits = predictor(list(batch.values()), batch_seed(settings.seed, start))
            seconds = (time.perf_counter() - began) / len(batch)
            pictures = [
                _pictures(sample, edit, settings.image_area) for sample, edit in zip(batch.values(), edits, strict=True)
            ]
            # Not before: a run that fails at once leaves no folder that refuses the corrected one.
            write_json(settings_file, asked)
            _write_batch(folders[start], batch, pictures, settings, seconds)
            print(f"{settings.name}: {start + len(batch)} of {len(rows)}", flush=True)
    predictions = [row for folder in folders.values() for row in read_records(folder / ROWS_FILE, Prediction)]
    write_records(whole, predictions, asked)
    return whole


def _pictures(sample: Sample, edited: Image.Image, image_area: int) -> dict[str, Image.Image]:
    """What a judge or a reader sees of a sample, by kind, all of one size rule."""
    shown = fit_image(sample.source, image_area, FACTOR)
    pictures = {"source": shown, "edited": as_judged(edited, shown, image_area, sample.id)}
    if sample.target is not None:
        pictures["target"] = fit_image(sample.target, image_area, FACTOR)
    return pictures


def _write_batch(
    folder: Path,
    batch: Mapping[int, Sample],
    pictures: Sequence[Mapping[str, Image.Image]],
    settings: Settings,
    seconds: float,
) -> None:
    """Write a batch of samples by row number, whole or not at all. Names hold the row, never the id, which may be any
    text."""
    with whole_folder(folder) as temporary:
        records = []
        for (row, sample), kinds in zip(batch.items(), pictures, strict=True):
            names = {kind: f"{row:06d}-{kind}.png" for kind in kinds}
            for kind, picture in kinds.items():
                picture.save(temporary / names[kind])
            paths = {kind: f"batches/{folder.name}/{name}" for kind, name in names.items()}
            records.append(
                Prediction(
                    id=sample.id,
                    benchmark=settings.benchmark.name,
                    split=sample.split,
                    task=sample.task,
                    instruction=sample.instruction,
                    source=paths["source"],
                    edited=paths["edited"],
                    target=paths.get("target"),
                    model=settings.name,
                    editor=settings.editor,
                    seed=settings.seed,
                    seconds=seconds,
                )
            )
        write_records(temporary / ROWS_FILE, records, {})
