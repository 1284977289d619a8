"""A benchmark's rows, wherever they are, as samples.

They are opened and read by what reads training data (`emu3.train_image_editing.open_rows`, `image_rows`), so whatever
can be trained on can be evaluated. Images are decoded when a row is taken, not before: the encoded images of the rows
that count are held in memory, of the others nothing. One thing differs: a row that cannot be read ends the run, since
a benchmark with holes is another benchmark; and what is wrong with a text is said before the first image is made.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from baselines.benchmarks.spec import SPLIT_COLUMN, Benchmark
from emu3.errors import UserError
from emu3.extensions import is_extension
from emu3.hub import HUB_ID
from emu3.tokenizer.images import read_mask
from emu3.train_image_editing.image_rows import (
    BadRow,
    Columns,
    cell_size,
    image_bytes,
    read_instruction,
    read_row,
    read_text,
    row_id,
)
from emu3.train_image_editing.open_rows import open_rows, visible_files
from emu3.train_image_editing.row_files import ParquetRows, RowSource

DEV, HELD_OUT = "dev", "held-out"
"""Parts of a benchmark: one to choose settings on, and one that nothing was chosen on."""
DEV_SHARE = 0.2
"""Share of the source images that are in the former."""
CHOICE_SEED = 42
_ROWS_AT_ONCE = 256
_SPLITS_OF_FILES = ("train", "validation", "test", "dev")


def columns_of(benchmark: Benchmark) -> Columns:
    """What is read of a benchmark's rows."""
    texts = (benchmark.source_set, benchmark.source_id, benchmark.source_caption, benchmark.target_caption)
    return Columns(
        source=benchmark.source,
        instruction=benchmark.instruction,
        edited=benchmark.target,
        id=benchmark.id,
        task=benchmark.task,
        masks=() if benchmark.mask is None else (benchmark.mask,),
        texts=tuple(name for name in (*texts, benchmark.where and benchmark.where[0]) if name is not None),
        extra=(SPLIT_COLUMN,),
    )


def find_rows(
    benchmark: Benchmark,
    data: str | Path | None = None,
    data_dir: Path | None = None,
    split: str | None = None,
    *,
    config: str | None = None,
    data_files: Sequence[str] = (),
) -> RowSource:
    """The rows of a benchmark.

    data: whatever `open_rows` opens, on disk or by its Hub id. data_dir: a folder with a subfolder NAME or with files
    NAME*.parquet, NAME the benchmark's. Neither: the benchmark's place on the Hub.
    split, config, data_files: as `open_rows` takes them; for `data` only. Raises UserError where there are none, saying
    what is there.
    """
    columns = columns_of(benchmark)
    if data is not None and data_dir is not None:
        raise UserError("--data and --data-dir name the same thing twice: give one of them")
    if data is not None:
        name = str(data)
        if is_extension(name):
            return open_rows(name, "local", split, columns, config=config, data_files=data_files)
        if Path(data).exists() or HUB_ID.fullmatch(name) is None:
            if not Path(data).exists():
                raise UserError(f"{data} is neither a file nor a folder here, nor a Hub id")
            return open_rows(name, "local", split, columns, config=config, data_files=data_files)
        try:
            if split is None and not data_files:
                raise UserError(f"{name} is on the Hub: name its split, --split")
            return open_rows(name, "HF", split, columns, config=config, data_files=data_files)
        except UserError as error:
            raise UserError(f"{data} does not exist here, and as a Hub id: {error}") from error
    if split is not None or config is not None or data_files:
        raise UserError("--split chooses among the files of --data, as --config-name and --data-files do: leave it out")
    if data_dir is not None:
        return rows_of_files(benchmark, _in_data_dir(benchmark, data_dir))
    if benchmark.hub is None:
        raise UserError(f"benchmark {benchmark.name!r} has no place on the Hub: say where it is, --data or --data-dir")
    revision = f"@{benchmark.revision}" if benchmark.revision else ""
    try:
        return open_rows(benchmark.hub + revision, "HF", None, columns, data_files=benchmark.files)
    except UserError as error:
        raise UserError(f"benchmark {benchmark.name}: {error} (files on disk: --data-dir)") from error


def rows_of_files(benchmark: Benchmark, files: Sequence[Path]) -> RowSource:
    """The rows of Parquet files, in the order of the files."""
    return ParquetRows(files, Path("/"), columns_of(benchmark))


def _in_data_dir(benchmark: Benchmark, data_dir: Path) -> list[Path]:
    folder = data_dir / benchmark.name
    if not folder.is_dir():
        if files := [
            data_dir / name for name in visible_files(data_dir, ".parquet") if fnmatch(name, f"{benchmark.name}*")
        ]:
            return files
        raise UserError(f"{data_dir} holds neither a folder {benchmark.name} nor files {benchmark.name}*.parquet")
    present = visible_files(folder, ".parquet")
    if not present:
        raise UserError(f"{folder} has no Parquet files")
    # By the file name alone: a folder on disk may be flat. Renamed files of a benchmark are all of it.
    names = {Path(pattern).name for pattern in benchmark.files}
    chosen = [file for file in present if any(fnmatch(Path(file).name, name) for name in names)] or present
    return [folder / file for file in chosen]


@dataclass(frozen=True)
class Sample:
    """One row; images are RGB. `target` is the image that the dataset calls right, or None.

    `source_set` is the part of the benchmark that the row comes from, "" where it has no parts. `source_id` says which
    image is edited: by the data's own column, else by the head of the SHA-256 of the image as it is stored. The
    captions describe the image before and after the edit; `mask`, of mode L and the source's size, is white where the
    edit belongs.
    """

    id: str
    task: str
    split: str
    source_set: str
    instruction: str
    source: Image.Image
    target: Image.Image | None
    source_id: str = ""
    source_caption: str | None = None
    target_caption: str | None = None
    mask: Image.Image | None = None


class Samples(Sequence[Sample]):
    """`Samples(benchmark, rows)[i]` is the i-th row that counts; slices give lists. `rows` has `columns_of(benchmark)`.

    part: `DEV` or `HELD_OUT`, which a hash of the source image decides, so that all its edits are in the same one; None
    takes both. limit: so many of them, drawn by `CHOICE_SEED`, in the order of the data; a larger draw holds a smaller
    one. Raises UserError, naming file and row, for repeated ids in data of one's own, an empty
    set, and a row without instruction, with a text that UTF-8 cannot hold or no image; on access, for an image that
    cannot be read. Published data have repeated ids; theirs get the row's number behind a #.
    """

    def __init__(
        self, benchmark: Benchmark, rows: RowSource, limit: int | None = None, part: str | None = None
    ) -> None:
        self.benchmark = benchmark
        self._rows = rows
        self._columns = columns_of(benchmark)
        self.rows_in_files = len(rows)
        if not len(rows):
            raise UserError(f"{rows.files[0]} holds no rows")
        self._ids = self._make_ids()
        self._numbers = self._chosen(self._rows_that_count(), limit, part)
        ordered = sorted(self._numbers)
        self._cells = dict(zip(ordered, rows.read(ordered), strict=True))
        self._texts = {number: self._read_texts(number) for number in ordered}

    def rows_with_target(self) -> list[int]:
        """The places of the samples that have a target image."""
        target = self.benchmark.target
        return [place for place in range(len(self)) if target is not None and self._values(place)[target] is not None]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a source as its file says, undecoded; (0, 0) if that is not known."""
        return cell_size(self._values(index)[self.benchmark.source], self.benchmark.source)

    def undecoded(self, index: int) -> tuple[str, bytes, bytes | None]:
        """A row's instruction, and the files of its source and, where there is one, its target."""
        values, spec = self._values(index), self.benchmark
        target = None if spec.target is None else values[spec.target]
        return (
            read_instruction(values, self._columns).removeprefix(spec.drop_prefix),
            image_bytes(values[spec.source], spec.source),
            None if target is None else image_bytes(target, spec.target or ""),
        )

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, values, spec = self._numbers[index], self._values(index), self.benchmark
        try:
            row = read_row(values, self._columns, number)
            mask = _mask(values[spec.mask], spec.mask, row.source.size) if spec.mask else None
        except BadRow as error:
            raise self._error(number, error) from None
        texts = self._texts[number]
        task = row.task or self._task_of_file(number) or spec.name
        return Sample(
            id=self._ids[number],
            task=task,
            split=texts[SPLIT_COLUMN] or spec.splits.get(task, spec.split),
            source_set=texts.get(spec.source_set) or "",
            instruction=row.instruction.removeprefix(spec.drop_prefix),
            source=row.source,
            target=row.edited,
            source_id=self._source_id(values),
            source_caption=texts.get(spec.source_caption),
            target_caption=texts.get(spec.target_caption),
            mask=mask,
        )

    def _values(self, index: int) -> Mapping[str, Any]:
        values = self._cells[self._numbers[index]]
        assert not isinstance(values, BadRow)
        return values

    def _read_texts(self, number: int) -> dict[str | None, str | None]:
        """The further texts of a row, by their columns; all that is read of it is checked."""
        values, columns = self._cells[number], self._columns
        try:
            if isinstance(values, BadRow):
                raise values
            read_instruction(values, columns)
            image_bytes(values[columns.source], columns.source)
            texts: dict[str | None, str | None] = {name: read_text(values[name], name) for name in columns.texts}
            if columns.task is not None:
                read_text(values[columns.task], columns.task)
        except BadRow as error:
            raise self._error(number, error) from None
        split = values.get(SPLIT_COLUMN)
        # A column of that name may as well say what the rows are for, or be something else.
        named = isinstance(split, str) and split.strip() and split not in _SPLITS_OF_FILES
        return {**texts, SPLIT_COLUMN: split if named else None}

    def _error(self, number: int, error: BadRow) -> UserError:
        values = self._cells[number]
        name = str(number) if isinstance(values, BadRow) else row_id(values, self._columns, number)
        return UserError(f"{self._rows.file(number)}: row {name}: {error}")

    def _make_ids(self) -> list[str]:
        column = self.benchmark.id
        if column is None:
            return [str(row) for row in range(len(self._rows))]
        ids = []
        for row, cell in enumerate(self._rows.column(column)):
            try:
                ids.append(read_text(cell, column) or str(row))
            except BadRow as error:
                raise UserError(f"{self._rows.file(row)}: row {row}: {error}") from None
        counts = Counter(ids)
        if self.benchmark.hub is None and len(counts) < len(ids):
            twice = next(id for id, count in counts.items() if count > 1)
            raise UserError(f"{self._rows.files[0]}: the id {twice!r} in column {column!r} occurs more than once")
        return [f"{id}#{row}" if counts[id] > 1 else id for row, id in enumerate(ids)]

    def _rows_that_count(self) -> list[int]:
        rows = list(range(len(self._rows)))
        if self.benchmark.where is not None:
            column, value = self.benchmark.where
            rows = [row for row, cell in zip(rows, self._rows.column(column), strict=True) if cell == value]
            if not rows:
                raise UserError(f"{self._rows.files[0]} holds no row with {value!r} in column {column!r}")
        if self.benchmark.subset is not None:
            rows = [rows[place] for place in self.benchmark.subset.of(len(rows))]
        return rows

    def _chosen(self, numbers: list[int], limit: int | None, part: str | None) -> list[int]:
        if part is not None:
            chosen = []
            for start in range(0, len(numbers), _ROWS_AT_ONCE):
                some = numbers[start : start + _ROWS_AT_ONCE]
                cells = zip(sorted(some), self._rows.read(sorted(some)), strict=True)
                places = {number: self._part(number, values) for number, values in cells}
                chosen += [number for number in some if places[number] == part]
            if not chosen:
                raise UserError(f"{self._rows.files[0]}: its {len(numbers)} rows are too few to have a part {part!r}")
            numbers = chosen
        if limit is not None and limit < len(numbers):
            drawn = np.random.default_rng(CHOICE_SEED).permutation(len(numbers))[:limit]
            numbers = [numbers[place] for place in sorted(drawn)]
        return numbers

    def _part(self, number: int, values: Mapping[str, Any] | BadRow) -> str:
        try:
            if isinstance(values, BadRow):
                raise values
            key = f"{CHOICE_SEED} {self._source_id(values)}"
        except BadRow as error:
            raise UserError(f"{self._rows.file(number)}: row {number}: {error}") from None
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
        return DEV if place < DEV_SHARE * 2**64 else HELD_OUT

    def _source_id(self, values: Mapping[str, Any]) -> str:
        """Raises BadRow where there is no image."""
        spec = self.benchmark
        named = read_text(values[spec.source_id], spec.source_id) if spec.source_id is not None else None
        return named or hashlib.sha256(image_bytes(values[spec.source], spec.source)).hexdigest()[:16]

    def _task_of_file(self, number: int) -> str | None:
        words = self.benchmark.file_tasks
        if not words:
            return None
        file = self._rows.file(number)
        for word in words:
            if word in file.name:
                return word
        raise UserError(f"{file}: the task of its rows is in its name, which has none of {', '.join(words)}")


def _mask(cell: Any, column: str, size: tuple[int, int]) -> Image.Image | None:
    """The mask in a cell. Raises BadRow for one that is not clear, or belongs to an image of another size."""
    if cell is None or (isinstance(cell, Mapping) and not cell.get("bytes") and not cell.get("path")):
        return None
    try:
        mask = read_mask(io.BytesIO(image_bytes(cell, column)), column)
    except UserError as error:
        raise BadRow(str(error)) from None
    if mask.size != size:
        sizes = " and ".join(f"{width}x{height}" for width, height in (mask.size, size))
        raise BadRow(f"the mask in {column} and the source have other sizes: {sizes}")
    return mask
