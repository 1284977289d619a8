"""Step 1 of 4: an editor's images for a benchmark.

    python -m baselines.evaluate --editor emu3 --model mair-lab/sft-simple --vision BAAI/Emu3-VisionTokenizer \
        --tokenizer BAAI/Emu3-Gen --benchmark omniedit --save-dir runs/eval
    python -m baselines.evaluate --editor no-edit --data data/held-out --original-image-key input \
        --edit-instruction instruction --edited-image output --output-dir runs/x/eval/no-edit

The source is brought to `--image-area` pixels and saved as the judge will see it; an editor gets the image that the
dataset has. Writes PNG files and predictions.parquet (`baselines.results.predictions`); a second call goes on where
the first one stopped. Several GPUs: `python -m emu3.launch --ranks 4 baselines.evaluate ...`, or one call with
`--shard I/4` each. One editor per call, `no-edit` and `ground-truth` included: they are rows of the table, too.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.benchmarks.samples import CHOICE_SEED, DEV, HELD_OUT, Samples, find_rows
from baselines.benchmarks.spec import BENCHMARKS, GENERIC, Benchmark, benchmark_named
from baselines.editors.editing import (
    DIFFUSERS,
    EDITORS,
    EMU3,
    GROUND_TRUTH,
    ChosenEditor,
    EditorOptions,
    add_options,
    share_of,
)
from baselines.results.predictions import EvaluationSettings, write_predictions
from baselines.results.records import fingerprint, versions
from emu3.checkpoint_facts import DEFAULT_AREA, read_facts
from emu3.errors import UserError, run_main
from emu3.extensions import is_extension, source_digests
from emu3.flags import CommandParser
from emu3.settings import COUNT, SEED
from emu3.train_image_editing.image_folder import ImageFolder
from emu3.train_image_editing.row_files import RowSource
from rl.reward.config import judge_from_flags

COLUMNS = ("source", "instruction", "target", "task", "id", "source_id", "source_caption", "target_caption", "mask")


def run(
    *,
    editor: str,
    output_dir: Path,
    by_name: bool = False,
    name: str | None = None,
    benchmark: Benchmark = GENERIC,
    data: str | Path | None = None,
    data_dir: Path | None = None,
    split: str | None = None,
    config_name: str | None = None,
    data_files: Sequence[str] = (),
    options: EditorOptions = EditorOptions(),  # noqa: B008
    limit: int | None = None,
    part: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    image_area: int | None = None,
    shard: str | None = None,
) -> Path:
    """Predict a benchmark; returns the path of predictions.parquet.

    `editor` is one of `EDITORS`, `name` its row in the tables (what it is called by itself if not given). The run goes
    to `output_dir`, with `by_name` to a folder in it that is named by benchmark, name and seed. `data`, `data_dir`,
    `split`, `config_name` and `data_files` as `find_rows` takes them, `shard` as `share_of` does, `limit` and `part`
    as `Samples`. `image_area` is in pixels, by default what an `emu3` model was trained at, else 65,536. The ground
    truth leaves out rows without a target. Images depend on `seed` and `batch_size`. Raises `UserError` on bad input
    and on an output folder with another run.
    """
    image_area = image_area_of(editor, options) if image_area is None else image_area
    if (batch_size is not None and batch_size < 1) or image_area < 1 or seed < 0:
        raise UserError(f"batch size and image area are at least 1, the seed 0: {batch_size}, {image_area}, {seed}")
    if limit is not None and limit < 1:
        raise UserError(f"the limit is at least 1: {limit}")
    share = share_of(shard)
    found, samples = open_samples(benchmark, data, data_dir, split, config_name, data_files, limit, part)
    rows = rows_of(editor, samples)
    if not rows:
        raise UserError(f"no row of {found.files[0]} has a target image (column {benchmark.target!r})")
    chosen = choose_editor(editor, options, image_area)
    settings = EvaluationSettings(
        editor=editor,
        name=name or chosen.name,
        benchmark=benchmark.rules(),
        origin=found.origin,
        # Of an image folder the files are the table alone, its contents the images as well; of one's own reader
        # nobody knows what they are.
        data=found.contents if isinstance(found, ImageFolder) or is_extension(str(data)) else fingerprint(found.files),
        limit=None if limit is None else f"{limit} by seed {CHOICE_SEED}",
        part=part,
        seed=seed,
        batch_size=batch_size or chosen.batch_size,
        image_area=image_area,
        options=chosen.settings,
        versions=versions(),
        extensions={**source_digests(editor), **source_digests(str(data))},
    )
    if by_name:
        output_dir = output_dir / benchmark.name / f"{settings.name.strip('/').replace('/', '--')}-seed{seed}"
    return write_predictions(samples, rows, chosen, output_dir, settings, share)


def open_samples(
    benchmark: Benchmark,
    data: str | Path | None = None,
    data_dir: Path | None = None,
    split: str | None = None,
    config_name: str | None = None,
    data_files: Sequence[str] = (),
    limit: int | None = None,
    part: str | None = None,
) -> tuple[RowSource, Samples]:
    """The rows that a run is about. The arguments are those of `run`, which says the rest."""
    found = find_rows(benchmark, data, data_dir, split, config=config_name, data_files=data_files)
    samples = Samples(benchmark, found, limit, part)
    if limit is not None or part is not None:
        print(f"{len(samples)} of {samples.rows_in_files} rows, drawn by seed {CHOICE_SEED}")
    if benchmark.rows is not None and samples.rows_in_files != benchmark.rows:
        print(f"note: {benchmark.name} has {benchmark.rows} rows as published, these files {samples.rows_in_files}")
    return found, samples


def rows_of(editor: str, samples: Samples) -> list[int]:
    """The places of the samples that an editor of this kind edits."""
    return samples.rows_with_target() if editor == GROUND_TRUTH else list(range(len(samples)))


def image_area_of(kind: str, options: EditorOptions) -> int:
    facts = read_facts(options.model) if kind == EMU3 and options.model is not None else None
    return DEFAULT_AREA if facts is None or facts.image_area is None else facts.image_area


def choose_editor(kind: str, options: EditorOptions, image_area: int) -> ChosenEditor:
    """The editor `kind`, one of `EDITORS` or one's own, with its settings, not loaded; `image_area` is in pixels.

    A run that is finished, or that has other settings, is told so without waiting for a model. A kind's module is
    imported when it is chosen: diffusers is an extra, and torch takes seconds.

    Raises `UserError` for options that it does not take or that cannot be, and for weights that cannot be had.
    """
    options.check(kind)
    if is_extension(kind):
        from baselines.editors.fixed import choose_own

        return choose_own(kind, options.model)
    if kind == EMU3:
        from baselines.editors.emu3_editor import choose_emu3

        return choose_emu3(options, image_area)
    if kind in DIFFUSERS:
        from baselines.editors.diffusers_editors import choose_diffusers

        return choose_diffusers(kind, options)
    from baselines.editors.fixed import choose_fixed

    return choose_fixed(kind, options)


def main() -> None:
    print(run(**arguments_of()))


def arguments_of(words: Sequence[str] | None = None) -> dict[str, Any]:
    """What `run` takes, from a command line."""
    parser = CommandParser(
        old={"--output-dir": "--output"},
        prog=None if words is None else "baselines.evaluate",
        description="Write an editor's images for a benchmark.",
    )
    parser.add_argument(
        "--editor", required=True, metavar="EDITOR", help=f"{', '.join(EDITORS)}, or your own: file.py:name"
    )
    parser.add_argument("--name", help="the model's row in the tables (default: what it is called)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", dest="output_dir", type=Path, help="folder of this run")
    where.add_argument("--save-dir", type=Path, help="folder of runs; this one is named by benchmark, name and seed")
    _add_data(parser)
    add_options(parser)
    parser.add_argument(
        "--limit", type=COUNT, help="so many rows, drawn by a fixed seed; each draw holds the smaller ones"
    )
    parser.add_argument(
        "--part",
        choices=(DEV, HELD_OUT),
        help=f"{DEV}: a fifth of the source images, to choose settings on; {HELD_OUT}: the others (default: both)",
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--batch-size", type=COUNT, help="default: what suits the editor")
    parser.add_argument(
        "--image-area",
        type=COUNT,
        help="pixels of the images that the judge sees (default: what an emu3 model was trained at, else 65536)",
    )
    parser.add_argument("--shard", help="I/N: do part I of N, from 0 (default: as torchrun says)")
    arguments = vars(parser.parse_args(words))
    save_dir = arguments.pop("save_dir")
    arguments |= {"output_dir": save_dir or arguments["output_dir"], "by_name": save_dir is not None}
    columns = {key: arguments.pop(key) for key in COLUMNS}
    given = {key: column for key, column in columns.items() if column is not None}
    benchmark = dataclasses.replace(benchmark_named(arguments["benchmark"]), **given)
    own_name = arguments.pop("benchmark_name")
    arguments["benchmark"] = benchmark if own_name is None else benchmark.called(own_name)
    arguments["judge"] = judge_from_flags(arguments)
    names = [field.name for field in dataclasses.fields(EditorOptions)]
    arguments["options"] = EditorOptions(**{key: arguments.pop(key) for key in names})
    return arguments


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--benchmark",
        default=GENERIC.name,
        metavar="BENCHMARK",
        help=f"rules and columns to begin with: {', '.join(BENCHMARKS)}, or your own: file.py:name (default: data)",
    )
    group.add_argument("--benchmark-name", help="what tables call it, for data of one's own (default: data)")
    group.add_argument("--data", help="a file or folder as prepare_data takes, or a Hub id (default: the benchmark's)")
    group.add_argument("--data-dir", type=Path, help="a folder with a subfolder or files named as the benchmark")
    group.add_argument("--split", help="of --data, take the files that are named for it, such as test-00000.parquet")
    group.add_argument("--config-name", help="configuration of --data on the Hub")
    group.add_argument("--data-files", nargs="+", default=(), help="of --data, take the files of these patterns")
    group.add_argument("--original-image-key", dest="source", help="column of the source image")
    group.add_argument("--edit-instruction-key", "--edit-instruction", dest="instruction", help="of the instruction")
    group.add_argument("--edited-image-key", "--edited-image", dest="target", help="of the target image")
    group.add_argument("--task-key", "--edit-type-key", dest="task", help="of the task")
    group.add_argument("--id-key", dest="id", help="of the id (default: the row number)")
    group.add_argument("--source-id-key", dest="source_id", help="of the source image, where several rows edit one")
    group.add_argument("--source-caption-key", dest="source_caption", help="of what the source shows, for CLIP")
    group.add_argument("--target-caption-key", dest="target_caption", help="of what the edited image should show")
    group.add_argument("--mask-key", dest="mask", help="of the mask, white where the edit belongs")


if __name__ == "__main__":
    run_main(main)
