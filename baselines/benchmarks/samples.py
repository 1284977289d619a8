"""A benchmark's files, wherever they are, and their rows as samples.

Files are on disk or on the Hub, whose cache and `HF_HUB_OFFLINE=1` do what they do everywhere
(`emu3.train_image_editing.open_rows`); nothing but Parquet files is fetched. Images are decoded when a row is taken,
not before: the encoded images of the rows that count are held in memory, of the others nothing. Cells are read as
training data are (`emu3.train_image_editing.image_rows`), with one difference: a row that cannot be read ends the run,
since a benchmark with holes is another benchmark.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from baselines.benchmarks.spec import SPLIT_COLUMN, Benchmark
from emu3.errors import UserError
from emu3.hub import HUB_ID, HubDataset
from emu3.tokenizer.images import read_image
from emu3.train_image_editing.image_rows import BadRow, Columns, read_row, row_id
from emu3.train_image_editing.open_rows import of_split

_BATCH_ROWS = 32


@dataclass(frozen=True)
class DataFiles:
    """Parquet files in the order of their rows. origin: `org/name@commit`, or "local"."""

    files: tuple[Path, ...]
    origin: str = "local"


def find_files(
    benchmark: Benchmark, data: str | Path | None = None, data_dir: Path | None = None, split: str | None = None
) -> DataFiles:
    """The files of a benchmark.

    data: a Parquet file, a folder of them, or a Hub id. data_dir: a folder with a subfolder NAME or with files
    NAME*.parquet, NAME the benchmark's. Neither: the benchmark's place on the Hub.
    split: takes the files that are named for it, as in data/test-00000-of-00001.parquet; for `data` only.
    Raises UserError where there are none, saying what is there.
    """
    if data is not None and data_dir is not None:
        raise UserError("--data and --data-dir name the same thing twice: give one of them")
    if data is not None:
        if Path(data).exists() or HUB_ID.fullmatch(str(data)) is None:
            return DataFiles(_in_place(Path(data), None, split))
        try:
            return _from_hub(str(data), None, split)
        except UserError as error:
            raise UserError(f"{data} does not exist here, and as a Hub id: {error}") from error
    if split is not None:
        raise UserError("--split chooses among the files of --data; the files of a known benchmark are known")
    if data_dir is not None:
        return DataFiles(_in_data_dir(benchmark, data_dir))
    if benchmark.hub is None:
        raise UserError(f"benchmark {benchmark.name!r} has no place on the Hub: say where it is, --data or --data-dir")
    revision = f"@{benchmark.revision}" if benchmark.revision else ""
    try:
        return _from_hub(benchmark.hub + revision, benchmark.files, None)
    except UserError as error:
        raise UserError(f"benchmark {benchmark.name}: {error} (files on disk: --data-dir)") from error


def _from_hub(name: str, patterns: Sequence[str] | None, split: str | None) -> DataFiles:
    data = HubDataset(name)
    present = [file for file in data.names if file.endswith(".parquet")]
    if patterns is None and split is None:
        raise UserError(f"{name} is on the Hub: name its split, --split; it has {_some(present)}")
    if patterns is None:
        chosen, which = of_split(present, split or ""), f"of split {split!r}"
    else:
        chosen = [file for file in present if any(fnmatch(file, pattern) for pattern in patterns)]
        which = " or ".join(patterns)
    if not chosen:
        raise UserError(f"{name} has no files {which}; it has {_some(present)}")
    root = data.fetch(chosen)
    return DataFiles(tuple(root / file for file in chosen), f"{name.partition('@')[0]}@{root.name}")


def _in_data_dir(benchmark: Benchmark, data_dir: Path) -> tuple[Path, ...]:
    folder = data_dir / benchmark.name
    if folder.is_dir():
        return _in_place(folder, benchmark.files, None)
    if files := sorted(data_dir.glob(f"{benchmark.name}*.parquet")):
        return tuple(files)
    raise UserError(f"{data_dir} holds neither a folder {benchmark.name} nor files {benchmark.name}*.parquet")


def _in_place(data: Path, patterns: Sequence[str] | None, split: str | None) -> tuple[Path, ...]:
    if data.is_file():
        return (data,)
    present = sorted(file.relative_to(data).as_posix() for file in data.rglob("*.parquet"))
    if not present:
        raise UserError(f"{data} is neither a Parquet file nor a folder with Parquet files")
    if split is not None and not of_split(present, split):
        raise UserError(f"{data} has no files of split {split!r}; it has {_some(present)}")
    if split is not None:
        chosen = of_split(present, split)
    else:
        # By the file name alone: a folder on disk may be flat. Renamed files of a benchmark are all of it.
        names = {Path(pattern).name for pattern in patterns or ()}
        chosen = [file for file in present if any(fnmatch(Path(file).name, name) for name in names)] or present
    return tuple(data / file for file in chosen)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}" if names else "no Parquet files"


@dataclass(frozen=True)
class Sample:
    """One row; images are RGB. `target` is the image that the dataset calls right, or None.

    `source_set` is the part of the benchmark that the row comes from, "" where it has no parts. The captions describe
    the image before and after the edit; `mask`, of mode L and the source's size, is white where the edit belongs.
    """

    id: str
    task: str
    split: str
    source_set: str
    instruction: str
    source: Image.Image
    target: Image.Image | None
    source_caption: str | None = None
    target_caption: str | None = None
    mask: Image.Image | None = None


class Samples(Sequence[Sample]):
    """`Samples(benchmark, files)[i]` is the i-th row that counts; slices give lists.

    `files` are Parquet files in order, `limit` keeps the first of the rows that count. `rows_in_files` is the number
    before any rule. Raises `UserError` for a column that is not there (naming those that are), for an id that occurs
    twice, for an empty set, and, on access, for a row without instruction or readable source. Published data have
    repeated ids; theirs get the row's number behind a #.
    """

    def __init__(self, benchmark: Benchmark, files: Sequence[Path], limit: int | None = None) -> None:
        self.benchmark = benchmark
        self._columns = Columns(
            source=benchmark.source,
            instruction=benchmark.instruction,
            edited=benchmark.target,
            id=benchmark.id,
            task=benchmark.task,
        )
        more = (benchmark.source_set, benchmark.source_caption, benchmark.target_caption, benchmark.mask)
        self._names = list(dict.fromkeys([*self._columns.names(), *filter(None, more)]))
        texts = pa.concat_tables(
            [_read_table(file, self._names, self._small_columns()) for file in files], promote_options="permissive"
        )
        self.rows_in_files = len(texts)
        if not len(texts):
            raise UserError(f"{files[0]} holds no rows")
        self._ids = self._make_ids(texts, files[0])
        self._numbers = self._rows_that_count(texts, files[0])[:limit]
        self._places = {row: place for place, row in enumerate(sorted(self._numbers))}
        self._file_of_row: dict[int, Path] = {}
        self._table = self._read_rows(files)

    def rows_with_target(self) -> list[int]:
        """The places of the samples that have a target image."""
        if self.benchmark.target is None:
            return []
        valid = self._table[self.benchmark.target].is_valid().to_numpy()
        return [index for index, row in enumerate(self._numbers) if valid[self._places[row]]]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a source as its file says, undecoded; (0, 0) if that is not known."""
        cell = self._values(index)[self.benchmark.source]
        try:
            with Image.open(io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)) as image:
                return image.size
        except Exception:  # what is wrong with it is reported when the row is read
            return (0, 0)

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
            source = row.source.convert("RGB")
            mask = _mask(values[spec.mask], spec.mask, source.size) if spec.mask else None
        except BadRow as error:
            name = row_id(values, self._columns, number)
            raise UserError(f"{self._file_of_row[number]}: row {name}: {error}") from None
        task = row.task or self._task_of_file(number) or spec.name
        return Sample(
            id=self._ids[number],
            task=task,
            split=values.get(SPLIT_COLUMN) or spec.splits.get(task, spec.split),
            source_set=str(values[spec.source_set] or "") if spec.source_set else "",
            instruction=row.instruction.removeprefix(spec.drop_prefix),
            source=source,
            target=row.edited.convert("RGB") if row.edited is not None else None,
            source_caption=(values[spec.source_caption] or None) if spec.source_caption else None,
            target_caption=(values[spec.target_caption] or None) if spec.target_caption else None,
            mask=mask,
        )

    def _values(self, index: int) -> dict[str, Any]:
        values: dict[str, Any] = self._table.slice(self._places[self._numbers[index]], 1).to_pylist()[0]
        return values

    def _small_columns(self) -> list[str]:
        """Columns that decide which rows count."""
        where = self.benchmark.where
        return [name for name in (self.benchmark.id, where and where[0]) if name is not None]

    def _make_ids(self, texts: pa.Table, file: Path) -> list[str]:
        if self.benchmark.id is None:
            return [str(row) for row in range(len(texts))]
        column = texts[self.benchmark.id].to_pylist()
        ids = [str(row) if id is None else str(id) for row, id in enumerate(column)]
        counts = Counter(ids)
        if self.benchmark.hub is None and len(counts) < len(ids):
            twice = next(id for id, count in counts.items() if count > 1)
            raise UserError(f"{file}: the id {twice!r} in column {self.benchmark.id!r} occurs more than once")
        return [f"{id}#{row}" if counts[id] > 1 else id for row, id in enumerate(ids)]

    def _rows_that_count(self, texts: pa.Table, file: Path) -> list[int]:
        rows = list(range(len(texts)))
        if self.benchmark.where is not None:
            column, value = self.benchmark.where
            rows = [row for row, cell in zip(rows, texts[column].to_pylist(), strict=True) if cell == value]
            if not rows:
                raise UserError(f"{file} holds no row with {value!r} in column {column!r}")
        if self.benchmark.subset is not None:
            rows = [rows[place] for place in self.benchmark.subset.of(len(rows))]
        return rows

    def _read_rows(self, files: Sequence[Path]) -> pa.Table:
        """The rows that count, in ascending order of their numbers."""
        chosen_rows = np.array(sorted(self._numbers))
        tables, start = [], 0
        for file in files:
            parquet = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            optional = [SPLIT_COLUMN] if SPLIT_COLUMN in parquet.schema_arrow.names else []
            names = list(dict.fromkeys([*self._names, *optional]))
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
                here = chosen_rows[(chosen_rows >= start) & (chosen_rows < start + len(batch))]
                self._file_of_row |= dict.fromkeys(here.tolist(), file)
                if len(here):
                    tables.append(pa.Table.from_batches([batch]).take(here - start))
                start += len(batch)
        return pa.concat_tables(tables, promote_options="permissive")

    def _task_of_file(self, number: int) -> str | None:
        words = self.benchmark.file_tasks
        if not words:
            return None
        file = self._file_of_row[number]
        for word in words:
            if word in file.name:
                return word
        raise UserError(f"{file}: the task of its rows is in its name, which has none of {', '.join(words)}")


def _mask(cell: Any, column: str, size: tuple[int, int]) -> Image.Image | None:
    """The mask in a cell. Raises `BadRow` for one that cannot be read, or belongs to an image of another size."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None:
        return None
    try:
        mask = read_image(io.BytesIO(data), column).convert("L").point(lambda level: 255 * (level > 127))
    except UserError as error:
        raise BadRow(str(error)) from None
    if mask.size != size:
        sizes = " and ".join(f"{width}x{height}" for width, height in (mask.size, size))
        raise BadRow(f"the mask in {column} and the source have other sizes: {sizes}")
    return mask


def _read_table(file: Path, needed: Sequence[str], columns: Sequence[str]) -> pa.Table:
    try:
        present = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    if missing := [name for name in dict.fromkeys([*needed, *columns]) if name not in present]:
        raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(present)}")
    table = pq.read_table(file, columns=list(columns))
    return table if columns else pa.table({"row": pa.nulls(pq.read_metadata(file).num_rows)})
