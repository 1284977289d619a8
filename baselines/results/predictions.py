"""Predictions on disk: images and a line per finished sample, then one file over all of them.

    OUT/settings.json                    what the run was asked for; written with the first sample
    OUT/batches/000064/000070-edited.png the images of a batch, by row
    OUT/rows-0.jsonl                     the finished samples, a JSON line each; a file per process
    OUT/failures-0.json                  samples without an image, if there are any, and why
    OUT/predictions.parquet              written last: its presence says that all is there

Several processes share the batches, and whoever finds all samples there at its end writes the last file. A batch that
was cut short is computed again, since its seed belongs to all of it; what is finished of it stays as it is.

A sample's line is appended after its images are written, and holds their digests: a run that goes on after a crash
takes a sample for finished only if its line is whole and its images are what the line says. Images are not synced one
by one, which would cost more than writing them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from baselines.benchmarks.samples import Sample, Samples
from baselines.editors.editing import (
    ChosenEditor,
    Edited,
    EditResult,
    NoImage,
    SampleBatch,
    Share,
    SourceFrame,
    make_batches,
)
from baselines.results.records import (
    PREDICTIONS_FILE,
    REMEDY,
    Prediction,
    outside_of_folder,
    write_records,
)
from emu3.errors import UserError
from emu3.files import sha256_of, write_json
from emu3.run_folder import SettingsFile, owned

SETTINGS_FILE = "settings.json"
FORMAT = 2
"""Of the settings; 1 had no version."""

GIVE_UP_AFTER = 8
"""So many samples in a row without an image end a run: the editor does not work."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What a run was asked for, and all that led to its images.

    `name` is the run's row in the tables, `benchmark` the rules that made the samples, `origin` and `data` tell the
    files that they are from, `limit` and `part` which rows ("50 by seed 42": so many, chosen by that seed), `options`
    are the editor's, `image_area` is in pixels. extensions: the source's SHA-256 of one's own editor and reader, by
    name.
    """

    editor: str
    name: str
    benchmark: dict[str, Any]
    origin: str
    data: str
    limit: str | None
    seed: int
    batch_size: int
    image_area: int
    options: dict[str, Any]
    versions: dict[str, str]
    part: str | None = None
    extensions: dict[str, str] = field(default_factory=dict)


def write_predictions(
    samples: Samples,
    rows: Sequence[int],
    editor: ChosenEditor,
    output_dir: Path,
    settings: EvaluationSettings,
    share: Share,
) -> Path:
    """Predict a share of `rows` of `samples`; returns the path of the predictions file, which is there once all shares
    are done.

    The editor is loaded only if a sample is missing, before anything is written. Raises `UserError` when `output_dir`
    holds a run with other settings, for an image that is none of its sample, and, at the end, for samples without an
    image; what is missing is made by the next call.
    """
    asked = json.loads(json.dumps(asdict(settings)))
    whole = output_dir / PREDICTIONS_FILE
    _check_folder(output_dir, asked, finished=whole.exists())
    about = f"{settings.name} on {settings.benchmark['name']}"
    if whole.exists():
        print(f"{about}: all {len(rows)} images are there, none is made")
        return whole
    with owned(output_dir, (share.index, share.count)):
        done = finished_samples(output_dir)
        mine = share.of(make_batches(samples, rows, settings.batch_size, editor.equal_sizes))
        missing = [batch for batch in mine if not done.keys() >= set(batch.rows)]
        if done:
            print(f"{about}: {len(done.keys() & set(rows))} of {len(rows)} images are there, it goes on")
        if missing:
            run = _Worker(samples, editor, output_dir, settings, asked, share)
            run.predict(missing, len(rows), set(done))
            done = finished_samples(output_dir)
        if done.keys() >= set(rows):
            os.sync()  # once for all images; they were not synced one by one
            write_records(whole, [done[row] for row in rows], asked)
            chains = [done[row].reasoning_cut for row in rows if done[row].reasoning_cut is not None]
            if cut := sum(map(bool, chains)):
                print(f"{settings.name}: {cut} of {len(chains)} chains of thought were cut at --think-tokens")
        else:
            print(f"{settings.name}: share {share.index} of {share.count} is done, others are not")
    return whole


def _check_folder(output_dir: Path, asked: dict[str, Any], finished: bool) -> None:
    file = _settings_file(output_dir)
    if file.path.exists():
        # Nothing is added to a run that is finished: with newer libraries it is still the run that it was.
        decisive = [name for name in asked if name != "versions"] if finished else None
        replace(file, decisive=decisive).check(asked)
    elif output_dir.exists() and any(not path.name.startswith(".") for path in output_dir.iterdir()):
        raise UserError(f"{output_dir} is not empty and holds no run of this command: choose another folder")


def _settings_file(output_dir: Path) -> SettingsFile:
    later: dict[str, Any] = {"part": None, "extensions": {}}
    return SettingsFile(output_dir / SETTINGS_FILE, version=FORMAT, remedy=REMEDY, later=later)


class _Worker:
    """One process at work on its share."""

    def __init__(
        self,
        samples: Samples,
        editor: ChosenEditor,
        output_dir: Path,
        settings: EvaluationSettings,
        asked: dict[str, Any],
        share: Share,
    ) -> None:
        self._samples = samples
        self._editor = editor
        self._output_dir = output_dir
        self._settings = settings
        self._asked = asked
        self._share = share
        self._failures: dict[str, str] = {}
        self._failures_in_a_row = 0

    def predict(self, batches: Sequence[SampleBatch], total: int, done: set[int]) -> None:
        with self._editor.load() as editor, SampleLog(self._output_dir, self._share.index) as log:
            for batch in batches:
                drawn = [self._samples[row] for row in batch.rows]
                began = time.perf_counter()
                results: Sequence[EditResult]
                if callable(editor):  # a lookup
                    results = [editor(sample) for sample in drawn]
                else:
                    sources, instructions = [one.source for one in drawn], [one.instruction for one in drawn]
                    results = editor.edit(sources, instructions, batch.seed(self._settings.seed))
                seconds = (time.perf_counter() - began) / len(batch.rows)
                if len(results) != len(drawn):  # which image belongs to which sample cannot be told
                    ids = f"{drawn[0].id} to {drawn[-1].id}" if len(drawn) > 1 else drawn[0].id
                    gave = f"{self._editor.name} gave {len(results)} images for {len(drawn)} samples ({ids})"
                    raise UserError(f"{gave}: none was kept")
                trouble: UserError | None = None
                for row, sample, result in zip(batch.rows, drawn, results, strict=True):
                    if row in done:
                        continue
                    if isinstance(result, NoImage):
                        self._failures[sample.id] = result.reason
                        self._failures_in_a_row += 1
                        continue
                    try:
                        images = self._images(sample, result)
                    except UserError as error:
                        trouble = trouble or error
                        continue
                    self._keep(batch, row, sample, result, images, seconds, log)
                    self._failures_in_a_row = 0
                    done.add(row)
                if trouble is not None:
                    raise trouble
                print(f"{self._settings.name}: {len(done)} of {total}", flush=True)
                if self._failures_in_a_row >= GIVE_UP_AFTER:
                    break
        self._tell_failures()

    def _images(self, sample: Sample, result: Edited) -> dict[str, Any]:
        """What a judge or a reader sees of a sample, by kind, all of one size rule."""
        try:
            frame = SourceFrame(sample.source, self._settings.image_area)
        except UserError as error:
            raise UserError(f"sample {sample.id}: {error}") from None
        size = result.image.size
        if size != frame.shown.size and not frame.holds(size):
            raise UserError(
                f"sample {sample.id}: {self._settings.name} gave an image of {size[0]}x{size[1]} pixels for one of "
                f"{sample.source.width}x{sample.source.height}, which is another shape"
            )
        images = {"source": frame.shown, "edited": frame.fit(result.image)}
        if frame.uncropped.size != frame.shown.size:
            images["uncropped"] = frame.uncropped
        if sample.target is not None:
            images["target"] = frame.fit_target(sample.target)
        if sample.mask is not None:
            images["mask"] = frame.fit_mask(sample.mask)
        return images

    def _keep(
        self,
        batch: SampleBatch,
        row: int,
        sample: Sample,
        result: Edited,
        images: dict[str, Any],
        seconds: float,
        log: SampleLog,
    ) -> None:
        """Write a sample. File names hold the row, never the id, which may be any text."""
        settings = self._settings
        # Not before: a run that fails at once leaves no folder that refuses the corrected one.
        if not (self._output_dir / SETTINGS_FILE).exists():
            _settings_file(self._output_dir).record(self._asked)
        folder = self._output_dir / f"batches/{batch.start:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = {kind: f"batches/{folder.name}/{row:06d}-{kind}.png" for kind in images}
        for kind, image in images.items():
            image.save(self._output_dir / paths[kind])
        prediction = Prediction(
            id=sample.id,
            benchmark=settings.benchmark["name"],
            split=sample.split,
            task=sample.task,
            source_set=sample.source_set,
            instruction=sample.instruction,
            source=paths["source"],
            edited=paths["edited"],
            target=paths.get("target"),
            model=settings.name,
            editor=settings.editor,
            seed=settings.seed,
            seconds=seconds,
            reasoning=result.reasoning,
            source_caption=sample.source_caption,
            target_caption=sample.target_caption,
            mask=paths.get("mask"),
            source_uncropped=paths.get("uncropped"),
            source_id=sample.source_id,
            reasoning_cut=None if result.reasoning is None else result.cut,
        )
        log.append(row, prediction, result.candidates)

    def _tell_failures(self) -> None:
        file = self._output_dir / f"failures-{self._share.index}.json"
        if not self._failures:
            file.unlink(missing_ok=True)
            return
        if (self._output_dir / SETTINGS_FILE).exists():
            write_json(file, self._failures)
        id, reason = next(iter(self._failures.items()))
        others = f"; {len(self._failures) - 1} more without one" if len(self._failures) > 1 else ""
        kept = f", listed in {file}; all others are kept" if file.exists() else ""
        raise UserError(f"{self._settings.name} gave no image for sample {id}: {reason}{others}{kept}")


class SampleLog(AbstractContextManager["SampleLog"]):
    """Appends to OUT/rows-N.jsonl, made at the first line; N is the number of the process."""

    def __init__(self, output_dir: Path, number: int) -> None:
        self._folder = output_dir
        self._path = output_dir / f"rows-{number}.jsonl"
        self._file: IO[bytes] | None = None

    def append(self, row: int, prediction: Prediction, candidates: tuple[float | None, ...]) -> None:
        """Note that sample `row` is done. candidates: scores of what its image was chosen among."""
        line = {
            "row": row,
            "prediction": asdict(prediction),
            "digests": {name: sha256_of(self._folder / name) for name in _image_names(prediction)},
            **({"candidates": candidates} if candidates else {}),
        }
        if self._file is None:
            # Whatever a crash left of a last line is closed, so that the next one stands by itself.
            torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
            self._file = self._path.open("ab", buffering=0)
            if torn and self._file.tell():
                self._file.write(b"\n")
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def count_lines(files: Iterable[Path]) -> int:
    """Whole lines of files, of which some may not be there."""
    return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())


def finished_samples(output_dir: Path) -> dict[int, Prediction]:
    """The samples that all processes so far have finished, by row; what is torn or has lost an image is left out."""
    done: dict[int, Prediction] = {}
    for file in sorted(output_dir.glob("rows-*.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
                prediction = Prediction(**entry["prediction"])
                names = _image_names(prediction)
                inside = outside_of_folder(prediction) is None
                whole = inside and {name: sha256_of(output_dir / name) for name in names} == entry["digests"]
                if whole and type(entry["row"]) is int:
                    done[entry["row"]] = prediction
            except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
                continue
    return done


def _image_names(prediction: Prediction) -> list[str]:
    return [name for name in prediction.images if name is not None]
