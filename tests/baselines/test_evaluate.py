"""Predictions: what is written, resumed, shared, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from noise_images import IMAGE, noise, png
from PIL import Image, ImageChops

from baselines import evaluate
from baselines.benchmarks.samples import Samples, rows_of_files
from baselines.benchmarks.spec import Benchmark
from baselines.editors import fixed
from baselines.editors.editing import Edited, EditorOptions, EditResult, NoImage
from baselines.results import predictions
from baselines.results.records import Prediction, read_records, read_settings
from emu3.checkpoint_facts import CheckpointFacts, write_facts
from emu3.errors import UserError
from emu3.run_folder import owned
from emu3.tokenizer.images import fit_image
from rl.reward.config import JudgeConfig

FULL = Benchmark("data", source="input", instruction="instruction", target="output", task="task", id="id")
AREA = 16 * 16


class Inverter:
    """An editor that inverts, notes its batches and can be told to fail."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.fail_at: int | None = None
        self.answer: Callable[[list[Image.Image]], Sequence[EditResult]] = lambda images: [Edited(i) for i in images]

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> Sequence[EditResult]:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append((len(images), seed))
        return self.answer([ImageChops.invert(image) for image in images])


@pytest.fixture
def inverter(monkeypatch: pytest.MonkeyPatch) -> Inverter:
    """Stands in for no-edit."""
    editor = Inverter()
    monkeypatch.setattr(fixed, "NoEdit", lambda: editor)
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
    samples = Samples(FULL, rows_of_files(FULL, [data]))
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


def test_a_share_in_use_is_refused_and_the_others_are_not(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Two processes on one share make each image twice; those of another number of shares are another run's."""
    data, out = make_data(rows=5), tmp_path / "out"
    with owned(out, (0, 2)):
        for shard in ("0/2", "0/1", "1/3"):
            with pytest.raises(UserError, match="out is in use by"):
                evaluate.run(editor="no-edit", data=data, output_dir=out, benchmark=FULL, batch_size=2, shard=shard)
        evaluate.run(editor="no-edit", data=data, output_dir=out, benchmark=FULL, batch_size=2, shard="1/2")
    evaluate.run(editor="no-edit", data=data, output_dir=out, benchmark=FULL, batch_size=2, shard="0/2")
    assert (out / "predictions.parquet").is_file() and not list(out.glob(".owner*"))


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


def test_a_sample_whose_image_a_crash_has_torn_is_made_again(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    """Guards a resumed run against a truncated PNG; what is whole is not written again."""
    data = make_data(rows=5)
    run(data, tmp_path / "whole")
    run(data, tmp_path / "torn")
    (tmp_path / "torn/predictions.parquet").unlink()
    (tmp_path / "torn/batches/000000/000001-edited.png").write_bytes(b"half")
    kept = (tmp_path / "torn/batches/000000/000000-edited.png").stat().st_mtime_ns
    inverter.batches.clear()
    rows = run(data, tmp_path / "torn")
    assert [size for size, _ in inverter.batches] == [2]
    assert rows == read_records(tmp_path / "whole/predictions.parquet", Prediction)
    images = {name: bytes for name, bytes in files(tmp_path / "torn").items() if name.endswith(".png")}
    assert images == {name: bytes for name, bytes in files(tmp_path / "whole").items() if name.endswith(".png")}
    assert (tmp_path / "torn/batches/000000/000000-edited.png").stat().st_mtime_ns == kept


def test_a_line_that_a_crash_has_torn_takes_no_other_with_it(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    """Guards the first sample of a resumed run: its line must not continue the torn one."""
    data = make_data(rows=5)
    whole = run(data, tmp_path / "out")
    (tmp_path / "out/predictions.parquet").unlink()
    log = tmp_path / "out/rows-0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    assert run(data, tmp_path / "out") == whole


def test_shares_together_are_the_run(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    """Guards several GPUs: no batch twice, none left out, the images of one process, one file at the end."""
    data = make_data(rows=5)
    whole = run(data, tmp_path / "whole")
    inverter.batches.clear()
    for shard in ("2/3", "0/3"):
        path = evaluate.run(
            editor="no-edit", data=data, output_dir=tmp_path / "shared", benchmark=FULL, batch_size=2,
            image_area=AREA, name="m", shard=shard,
        )  # fmt: skip
        assert not path.exists()
    assert run(data, tmp_path / "shared", shard="1/3") == whole
    assert len(inverter.batches) == 3
    assert files(tmp_path / "shared").keys() - files(tmp_path / "whole").keys() == {"rows-1.jsonl", "rows-2.jsonl"}
    assert all(files(tmp_path / "shared")[name] == bytes for name, bytes in files(tmp_path / "whole").items()
               if name.endswith((".png", ".parquet")))  # fmt: skip


def test_the_share_is_what_torchrun_says(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = evaluate.run(editor="no-edit", data=make_data(rows=5), output_dir=tmp_path / "out", benchmark=FULL,
                        batch_size=2, image_area=AREA)  # fmt: skip
    assert [size for size, _ in inverter.batches] == [2] and not path.exists()
    with pytest.raises(UserError, match="a shard is I/N"):
        run(make_data(), tmp_path / "other", shard="2/2")


def test_one_failed_sample_loses_no_other(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    """Guards what was computed before and after a sample that came to nothing, and that the next call makes it."""
    data = make_data(rows=5)
    whole = run(data, tmp_path / "whole")
    bad = ImageChops.invert(noise(2)).tobytes()
    inverter.answer = lambda images: [
        NoImage("too hard") if image.tobytes() == bad else Edited(image) for image in images
    ]
    with pytest.raises(UserError, match=r"m gave no image for sample sample-2: too hard, listed in .*failures-0"):
        run(data, tmp_path / "out")
    assert json.loads((tmp_path / "out/failures-0.json").read_text()) == {"sample-2": "too hard"}
    assert not (tmp_path / "out/predictions.parquet").exists()
    inverter.batches.clear()
    inverter.answer = lambda images: [Edited(image) for image in images]
    assert run(data, tmp_path / "out") == whole
    assert len(inverter.batches) == 1 and not (tmp_path / "out/failures-0.json").exists()


def test_an_editor_that_never_works_is_given_up(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    """Guards hours of trying the same thing."""
    inverter.answer = lambda images: [NoImage("no key")] * len(images)
    with pytest.raises(UserError, match=r"for sample sample-0: no key; 7 more without one$"):
        run(make_data(rows=20), tmp_path / "out")
    assert len(inverter.batches) == 4 and not (tmp_path / "out").exists()


def test_reasoning_and_candidates_are_kept(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    """Guards the chain of thought, and what the choice among several edits was made from."""
    inverter.answer = lambda images: [Edited(image, "because", (1.0, None)) for image in images]
    assert {row.reasoning for row in run(make_data(), tmp_path / "out")} == {"because"}
    lines = [json.loads(line) for line in (tmp_path / "out/rows-0.jsonl").read_text().splitlines()]
    assert [line["candidates"] for line in lines] == [[1.0, None]] * 5


def test_all_that_led_to_a_number_is_in_the_settings(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    run(make_data(), tmp_path / "out", seed=3)
    settings = read_settings(tmp_path / "out/predictions.parquet")
    assert {"version": 2, **settings} == json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["seed"] == 3 and len(settings["data"]) == 64 and settings["origin"] == "local"
    assert settings["benchmark"]["source"] == "input" and settings["versions"]["pillow"]


def test_newer_libraries_do_not_continue_a_run_but_may_look_at_it(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a run whose halves come from different libraries, and a finished one that nobody could use any more."""
    data = make_data()
    inverter.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "half")
    inverter.fail_at = None
    run(data, tmp_path / "whole")
    monkeypatch.setattr(evaluate, "versions", lambda: {"python": "4"})
    with pytest.raises(UserError, match=r"holds a run with versions\."):
        run(data, tmp_path / "half")
    assert len(run(data, tmp_path / "whole")) == 5


@pytest.mark.parametrize(("option", "value"), [("seed", 7), ("name", "other"), ("limit", 2), ("batch_size", 3)])
def test_two_runs_with_one_folder_are_refused(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter, option: str, value: Any
) -> None:
    """Guards against a run that goes on under other settings, and against one that replaces another."""
    data = make_data()
    run(data, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match=f"holds a run with {option}="):
        run(data, tmp_path / "out", **{option: value})
    assert files(tmp_path / "out") == before


def test_other_data_under_the_same_path_are_noticed(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    run(make_data(rows=4), tmp_path / "out")
    with pytest.raises(UserError, match="holds a run with data="):
        run(make_data(rows=5), tmp_path / "out")


def test_a_batch_of_nothing_is_refused(make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch size and image area are at least 1"):
        run(make_data(), tmp_path / "out", batch_size=0)


def test_a_folder_with_something_else_is_refused(make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run of this command"):
        run(make_data(), tmp_path)


def test_too_few_images_are_an_error(make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter) -> None:
    """Guards against images that shift to other samples."""
    inverter.answer = lambda images: [Edited(image) for image in images[:-1]]
    with pytest.raises(UserError, match=r"no-edit gave 1 images for 2 samples \(sample-0 to sample-1\)"):
        run(make_data(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_at_once_can_be_corrected(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards against a folder that holds nothing and refuses the right settings for the wrong ones."""
    data = make_data()
    with pytest.raises(UserError, match="less than one cell"):
        run(data, tmp_path / "out", image_area=30)
    assert not (tmp_path / "out").exists()
    assert len(run(data, tmp_path / "out")) == 5


def test_an_image_at_native_size_is_fitted_like_the_source(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    inverter.answer = lambda images: [Edited(image.resize((64, 64))) for image in images]
    [row] = run(make_data(rows=1), tmp_path / "out")
    assert Image.open(tmp_path / "out" / row.edited).size == (16, 16)


def test_an_image_of_another_shape_is_an_error_and_loses_no_other(
    make_data: Callable[..., Path], tmp_path: Path, inverter: Inverter
) -> None:
    """Guards against a stretched image that a judge would blame on the model."""
    inverter.answer = lambda images: [Edited(images[0].resize((64, 16))), *(Edited(image) for image in images[1:])]
    with pytest.raises(UserError, match="sample sample-0: m gave an image of 64x16 pixels for one of 16x16"):
        run(make_data(rows=4), tmp_path / "out")
    [line] = (tmp_path / "out/rows-0.jsonl").read_text().splitlines()
    assert json.loads(line)["prediction"]["id"] == "sample-1"


def test_no_edit_is_the_source(make_data: Callable[..., Path], tmp_path: Path) -> None:
    for row in run(make_data(), tmp_path / "out"):
        assert (tmp_path / "out" / row.edited).read_bytes() == (tmp_path / "out" / row.source).read_bytes()


def test_ground_truth_is_the_target_where_there_is_one(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards against a row that counts as ground truth without having one."""
    images = [{"bytes": png(noise(0)), "path": None}, None, {"bytes": png(noise(2)), "path": None}]
    rows = run(make_data(rows=3, output=pa.array(images, IMAGE)), tmp_path / "out", editor="ground-truth")
    assert [row.id for row in rows] == ["sample-0", "sample-2"]
    for row in rows:
        assert row.target is not None
        assert (tmp_path / "out" / row.edited).read_bytes() == (tmp_path / "out" / row.target).read_bytes()


def test_ground_truth_needs_a_target_column(make_data: Callable[..., Path], tmp_path: Path) -> None:
    no_target = Benchmark("data", source="input", instruction="instruction")
    with pytest.raises(UserError, match=r"no row of .* has a target image"):
        run(make_data(), tmp_path / "out", editor="ground-truth", benchmark=no_target)


def test_emu3_needs_its_checkpoint_before_anything_is_written(make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="editor emu3 needs --model"):
        run(make_data(), tmp_path / "out", editor="emu3")
    assert not (tmp_path / "out").exists()


def test_a_run_is_named_by_benchmark_name_and_seed(make_data: Callable[..., Path], tmp_path: Path) -> None:
    path = evaluate.run(editor="no-edit", name="org/model@v1", data=make_data(), output_dir=tmp_path / "runs",
                        by_name=True, seed=4, image_area=AREA)  # fmt: skip
    assert path == tmp_path / "runs/data/org--model@v1-seed4/predictions.parquet"


def test_the_command_line_names_columns(
    make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        f"evaluate --editor no-edit --data {make_data()} --original-image-key input --edit-instruction instruction"
    )
    arguments += f" --id-key id --task-key task --output-dir {tmp_path / 'out'} --limit 1 --image-area {AREA}"
    arguments += " --benchmark-name mine"
    monkeypatch.setattr("sys.argv", arguments.split())
    evaluate.main()
    [row] = read_records(tmp_path / "out" / "predictions.parquet", Prediction)
    assert (row.id, row.task, row.model, row.editor) == ("sample-4", "counting", "no-edit", "no-edit")
    assert row.benchmark == "mine"


def test_the_image_area_is_the_one_of_the_model(tmp_path: Path) -> None:
    """Guards against images of another size than the model was trained at, which only look bad."""
    options = EditorOptions(model=str(tmp_path))
    assert evaluate.image_area_of("emu3", options) == 65536
    write_facts(tmp_path, CheckpointFacts(image_area=AREA))
    assert evaluate.image_area_of("emu3", options) == AREA
    assert evaluate.image_area_of("InstructPix2Pix", options) == 65536


def test_the_judge_of_the_best_is_named_by_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the flags that named it before they were one configuration, and a judge where nobody asked for one."""
    seen: list[Any] = []
    monkeypatch.setattr(evaluate, "run", lambda **arguments: seen.append(arguments["options"].judge))
    for flags in ("--best-of 5 --judge-url u --judge-model m --prompts c --judge-image-format jpeg", "--think"):
        monkeypatch.setattr("sys.argv", f"evaluate --editor emu3 --model x --output-dir o {flags}".split())
        evaluate.main()
    assert seen == [JudgeConfig("u", "m", "c", image_format="jpeg"), None]


def test_the_source_before_its_crop_is_kept(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards the published protocol, whose judge saw whole sources: 125 of 200 photographs lose a strip."""
    sources = [{"bytes": png(noise(row, *size)), "path": None} for row, size in enumerate([(32, 32), (48, 32)])]
    data = make_data(rows=2, input=pa.array(sources, IMAGE), output=pa.array(sources, IMAGE))
    square, wide = run(data, tmp_path / "out", editor="no-edit", image_area=1024)
    assert square.source_uncropped is None
    assert wide.source_uncropped is not None
    sizes = [Image.open(tmp_path / "out" / name).size for name in (wide.source, wide.edited, wide.source_uncropped)]
    assert sizes == [(32, 24), (32, 24), (39, 26)]
