"""Predictions: what is written, resumed, refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from noise_pictures import IMAGE, noise, png
from PIL import Image, ImageChops

from baselines import evaluate, predictions
from baselines.benchmarks.spec import Benchmark
from baselines.editors.emu3 import Emu3Editor
from baselines.records import Prediction, read_records
from emu3.errors import UserError
from emu3.mllm.editor import Edit
from emu3.tokenizer.images import fit_image

FULL = Benchmark("data", source="input", instruction="instruction", target="output", task="task", id="id")
AREA = 16 * 16


class Inverter:
    """An editor that inverts, notes its batches and can be told to fail."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.fail_at: int | None = None
        self.answer: Callable[[list[Image.Image]], list[Image.Image]] = lambda images: images

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Image.Image]:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append((len(images), seed))
        return self.answer([ImageChops.invert(image) for image in images])


@pytest.fixture
def inverter(monkeypatch: pytest.MonkeyPatch) -> Inverter:
    """Stands in for no-edit."""
    editor = Inverter()
    monkeypatch.setattr(evaluate, "NoEdit", lambda: editor)
    monkeypatch.setattr(predictions.time, "perf_counter", lambda: 0.0)
    return editor


def run(data: Path, output_dir: Path, editor: str = "no-edit", **options: Any) -> list[Prediction]:
    settings = {"benchmark": FULL, "batch_size": 2, "image_area": AREA, "name": "m"} | options
    return read_records(evaluate.run(editor=editor, data=data, output_dir=output_dir, **settings), Prediction)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writes_what_the_judge_will_see(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    """Guards the pairing of source, edit, target and text over batches of uneven size."""
    data = make_data(rows=5)
    samples = evaluate.Samples(FULL, data)
    rows = run(data, tmp_path / "out")
    assert [row.id for row in rows] == [f"sample-{place}" for place in range(5)]
    assert [size for size, _ in inverter.batches] == [2, 2, 1]
    for sample, row in zip(samples, rows, strict=True):
        assert sample.target is not None and row.target is not None
        assert (row.instruction, row.split, row.model) == (sample.instruction, sample.split, "m")
        shown = fit_image(sample.source, AREA, 8)
        assert Image.open(tmp_path / "out" / row.source).tobytes() == shown.tobytes()
        assert Image.open(tmp_path / "out" / row.edited).tobytes() == ImageChops.invert(shown).tobytes()
        assert Image.open(tmp_path / "out" / row.target).tobytes() == sample.target.tobytes()


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    """Guards resumption: identical files, no batch twice, and no predictions file before the end."""
    data = make_data(rows=5)
    run(data, tmp_path / "whole")
    inverter.batches.clear()
    inverter.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "predictions.parquet").exists()
    inverter.fail_at = None
    run(data, tmp_path / "resumed")
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert [size for size, _ in inverter.batches] == [2, 2, 1]


def test_batches_have_seeds_of_their_own(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    """Guards against the same random numbers in each batch, and against a seed that changes nothing."""
    data = make_data(rows=4)
    run(data, tmp_path / "a", seed=0)
    run(data, tmp_path / "b", seed=1)
    assert len({seed for _, seed in inverter.batches}) == 4


def test_a_finished_run_is_left_alone(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    data = make_data()
    run(data, tmp_path / "out")
    before = files(tmp_path / "out")
    inverter.fail_at = 3
    run(data, tmp_path / "out")
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(("option", "value"), [("seed", 7), ("name", "other"), ("limit", 2), ("batch_size", 3)])
def test_two_runs_with_one_folder_are_refused(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter, option: str, value: Any
) -> None:
    """Guards against a run that goes on under other settings, and against one that replaces another."""
    data = make_data()
    run(data, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match=f"already holds a run with {option}="):
        run(data, tmp_path / "out", **{option: value})
    assert files(tmp_path / "out") == before


def test_other_data_under_the_same_path_are_noticed(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    run(make_data(rows=4), tmp_path / "out")
    with pytest.raises(UserError, match="already holds a run with data="):
        run(make_data(rows=5), tmp_path / "out")


def test_a_batch_of_nothing_is_refused(make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch size and image area are at least 1"):
        run(make_data(), tmp_path / "out", batch_size=0)


def test_a_folder_with_something_else_is_refused(make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run of this command"):
        run(make_data(), tmp_path)


def test_too_few_pictures_are_an_error(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    """Guards against pictures that shift to other samples."""
    inverter.answer = lambda images: images[:-1]
    with pytest.raises(UserError, match="Inverter gave 1 pictures for 2 samples"):
        run(make_data(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_at_once_can_be_corrected(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards against a folder that holds nothing and refuses the right settings for the wrong ones."""
    data = make_data()
    with pytest.raises(UserError, match="less than one cell"):
        run(data, tmp_path / "out", image_area=30)
    assert not (tmp_path / "out").exists()
    assert len(run(data, tmp_path / "out")) == 5


def test_a_picture_at_native_size_is_fitted_like_the_source(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    inverter.answer = lambda images: [image.resize((64, 64)) for image in images]
    [row] = run(make_data(rows=1), tmp_path / "out")
    assert Image.open(tmp_path / "out" / row.edited).size == (16, 16)


def test_a_picture_of_another_shape_is_an_error(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    inverter.answer = lambda images: [image.resize((64, 16)) for image in images]
    with pytest.raises(UserError, match=r"sample sample-0: the edit is \(64, 16\) pixels, which does not fit"):
        run(make_data(rows=1), tmp_path / "out")


def test_no_edit_is_the_source(make_data: Callable[..., Path], tmp_path: Path) -> None:
    for row in run(make_data(), tmp_path / "out"):
        assert (tmp_path / "out" / row.edited).read_bytes() == (tmp_path / "out" / row.source).read_bytes()


def test_ground_truth_is_the_target_where_there_is_one(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards against a row that counts as ground truth without having one."""
    pictures = [{"bytes": png(noise(0)), "path": None}, None, {"bytes": png(noise(2)), "path": None}]
    rows = run(make_data(rows=3, output=pa.array(pictures, IMAGE)), tmp_path / "out", editor="ground-truth")
    assert [row.id for row in rows] == ["sample-0", "sample-2"]
    for row in rows:
        assert row.target is not None
        assert (tmp_path / "out" / row.edited).read_bytes() == (tmp_path / "out" / row.target).read_bytes()


def test_ground_truth_needs_a_target_column(make_data: Callable[..., Path], tmp_path: Path) -> None:
    no_target = Benchmark("data", source="input", instruction="instruction")
    with pytest.raises(UserError, match=r"no row of .* has a target picture"):
        run(make_data(), tmp_path / "out", editor="ground-truth", benchmark=no_target)


def test_emu3_needs_its_checkpoints_before_anything_is_written(make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --model and --vision"):
        run(make_data(), tmp_path / "out", editor="emu3")
    assert not (tmp_path / "out").exists()


def test_emu3_gets_whole_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards speed (one call per batch) and the sampling settings."""
    calls: list[tuple[int, dict[str, Any]]] = []

    class Recorder:
        @classmethod
        def from_pretrained(cls, model: Path, vision: Path) -> Recorder:
            return cls()

        def edit(self, images: list[Image.Image], instructions: list[str], **settings: Any) -> list[list[Edit]]:
            calls.append((len(images), settings))
            return [[Edit(image, None)] for image in images]

    monkeypatch.setattr("baselines.editors.emu3.Editor", Recorder)
    editor = Emu3Editor(tmp_path, tmp_path, temperature=0.5, top_k=7, think=True, image_area=AREA)
    pictures = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in range(3)]
    assert editor.edit(pictures, ["a", "b", "c"], seed=3) == pictures
    assert calls == [(3, {"n": 1, "temperature": 0.5, "top_k": 7, "seed": 3, "think": True, "image_area": AREA})]


def test_the_command_line_names_columns(
    make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        f"evaluate --editor no-edit --data {make_data()} --original-image-key input --edit-instruction instruction"
    )
    arguments += f" --id-key id --task-key task --output-dir {tmp_path / 'out'} --limit 1 --image-area {AREA}"
    monkeypatch.setattr("sys.argv", arguments.split())
    evaluate.main()
    [row] = read_records(tmp_path / "out" / "predictions.parquet", Prediction)
    assert (row.id, row.task, row.model, row.editor) == ("sample-0", "counting", "no-edit", "no-edit")
