"""PIE-Bench's own folder in, samples with captions and masks out, through prediction and score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise_images import noise, png
from PIL import Image

from baselines import evaluate, score
from baselines.benchmarks.pie_bench import SCHEMA, convert, decode_mask
from baselines.benchmarks.samples import Samples, rows_of_files
from baselines.benchmarks.spec import PIE_BENCH
from baselines.editors.editing import EditorOptions
from baselines.results.records import Prediction, ScoredSample, read_records
from emu3.errors import UserError

ENTRY: dict[str, Any] = {
    "image_path": "0_random_140/000000000000.png",
    "original_prompt": "a [blue] car",
    "editing_prompt": "a [red] car",
    "editing_instruction": "make the car red",
    "editing_type_id": "6",
    "blended_word": "car car",
    "mask": [33, 4, 49, 4],
}


def write(folder: Path, **changed: Any) -> Path:
    """PIE-Bench with one sample of 16x16 pixels, as its authors pack it."""
    (folder / "annotation_images/0_random_140").mkdir(parents=True, exist_ok=True)
    noise(0, 16, 16).save(folder / "annotation_images" / ENTRY["image_path"])
    (folder / "mapping_file.json").write_text(json.dumps({"000000000000": ENTRY | changed}))
    return folder


def test_masks_are_runs_with_a_frame() -> None:
    """Guards runs that are read as pairs of ends, columns for rows, and the outermost pixels, which belong to the edit
    in PIE-Bench's own evaluation. A run may end behind the image."""
    mask = decode_mask([8, 2, 16, 99], width=6, height=4)
    assert mask.astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1],
        [1, 0, 1, 1, 0, 1],
        [1, 0, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert not decode_mask([], 5, 5)[1:-1, 1:-1].any()


def test_a_folder_becomes_samples(tmp_path: Path) -> None:
    assert convert(write(tmp_path), tmp_path / "piebench.parquet") == 1
    [sample] = Samples(PIE_BENCH, rows_of_files(PIE_BENCH, [tmp_path / "piebench.parquet"]))
    assert (sample.id, sample.task, sample.instruction) == ("000000000000", "change color", "make the car red")
    assert (sample.source_caption, sample.target_caption) == ("a blue car", "a red car")
    assert sample.source.tobytes() == noise(0, 16, 16).tobytes()
    assert sample.mask is not None
    assert (np.asarray(sample.mask) == 255 * decode_mask(ENTRY["mask"], 16, 16)).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": [1, 2, 3]}, "its mask is no list of starts and lengths"),
        ({"mask": ["1", "2"]}, "its mask is no list of starts and lengths"),
        ({"image_path": "../../secret.png"}, "leads out of the folder"),
        ({"image_path": "1_change_object_80/1.png"}, "does not exist"),
        ({"editing_type_id": "10"}, "is not as in PIE-Bench"),
    ],
)
def test_a_sample_that_is_none_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"sample 000000000000.*{message}"):
        convert(write(tmp_path, **changed), tmp_path / "piebench.parquet")
    assert not (tmp_path / "piebench.parquet").exists()


def test_masks_and_captions_reach_the_metrics(tmp_path: Path) -> None:
    """Guards the way from the column to the number: `clip_t` was missing for every benchmark, since nobody handed the
    captions on. The mask has the size of the images that are compared."""
    convert(write(tmp_path), tmp_path / "data/piebench.parquet")
    (tmp_path / "edits").mkdir()
    noise(1, 16, 16).save(tmp_path / "edits/000000000000.png")
    file = evaluate.run(
        editor="folder",
        benchmark=PIE_BENCH,
        data_dir=tmp_path / "data",
        options=EditorOptions(images=tmp_path / "edits"),
        output_dir=tmp_path / "run",
        image_area=32 * 32,
    )
    [row] = read_records(file, Prediction)
    assert (row.source_caption, row.target_caption) == ("a blue car", "a red car")
    assert row.mask is not None
    source, edited, mask = (
        np.asarray(Image.open(file.parent / name), float) for name in (row.source, row.edited, row.mask)
    )
    assert mask.shape == source.shape[:2] == (32, 32) and set(np.unique(mask)) == {0, 255}
    scores = read_records(score.run(file, metrics=["l1_background"]), ScoredSample)
    expected = (np.abs(source - edited) * (mask == 0)[..., None]).mean() / 255
    assert scores[0].value == pytest.approx(expected)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    """Guards a mask that would be stretched over another image in silence."""
    convert(write(tmp_path), tmp_path / "piebench.parquet")
    rows = pq.read_table(tmp_path / "piebench.parquet").to_pylist()
    rows[0]["mask"]["bytes"] = png(noise(1, 8, 8).convert("1"))
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "piebench.parquet")
    with pytest.raises(UserError, match="the mask in mask and the source have other sizes: 8x8 and 16x16"):
        Samples(PIE_BENCH, rows_of_files(PIE_BENCH, [tmp_path / "piebench.parquet"]))[0]
