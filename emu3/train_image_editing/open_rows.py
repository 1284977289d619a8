"""A dataset of edits by its name, wherever it is: the one way to rows of every command that reads images.

On disk: Parquet files, a folder of them, an image folder with a JSONL or CSV file, what `datasets` saved with
`save_to_disk`. From the Hub: a configuration and a split, at a revision. Whatever it is, its rows are read a few at a
time, in ascending order, and it has a digest of its contents, so that a run that goes on with changed data is noticed.

From the Hub, Parquet files come whole into huggingface_hub's cache. Of the first rows alone (`limit`) no more is
fetched than they take, and what is not Parquet is streamed by `datasets`; both are kept as Parquet in the cache of that
library. So 100 rows of a dataset of 571 files cost about 100 rows, and a second run, or one without a network, nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from emu3.errors import UserError, one_line
from emu3.extensions import is_extension, make_extension
from emu3.files import read_json, whole_folder, write_json
from emu3.hub import HubDataset, hub_errors
from emu3.train_image_editing.image_folder import ImageFolder
from emu3.train_image_editing.image_rows import IMAGE_CELL, Columns
from emu3.train_image_editing.row_files import ParquetRows, RowSource, SavedRows

_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_STREAMED_FORMATS = ("parquet", "arrow", "json", "csv", "imagefolder")
_BATCH_ROWS = 32
_READ_BYTES = 2**20
_COPY = re.compile(
    r"(?P<start>(?:.*/)?)(?:copy of )?(?P<stem>[^/]+?)"
    r"(?:-copy\d+|-checkpoint|[ _-]+\(?copy\)?(?: \(?\d+\)?)?| \(\d+\)| - Kopie)?(?P<suffix>\.\w+)",
    re.IGNORECASE,
)


def open_rows(
    name: str,
    source: Literal["HF", "local"],
    split: str | None,
    columns: Columns,
    *,
    config: str | None = None,
    data_files: Sequence[str] = (),
    limit: int | None = None,
) -> RowSource:
    """Open a dataset.

    name: a Hub id or id@revision (HF); a file or folder on disk (local); or, whatever `source` says, one's own reader
    as `emu3.extensions` names it, a class or function of `columns` and `data_files`. split: default "train" on the Hub
    unless `data_files` names its files, all of a folder. config: configuration on the Hub. data_files: patterns of the
    files to take, relative to the dataset. limit: the rows after that many are not needed. Raises UserError if there is
    no such dataset, it is empty, or a column is missing.
    """
    if is_extension(name):
        if split is not None or config is not None:
            raise UserError(f"{name} is a reader of your own: it is told --data-files alone, no split or configuration")
        rows: RowSource = make_extension(
            name, "dataset", "(columns, data_files)", columns, data_files, protocol=RowSource
        )
    elif source == "HF":
        rows = _hub_rows(name, split, columns, config, data_files, limit)
    elif config is not None:
        raise UserError(f"{name} is on disk, where datasets have no configurations: leave --config-name out")
    else:
        rows = _local_rows(Path(name), split, columns, data_files)
    if not len(rows):
        raise UserError(f"dataset {name} is empty")
    return rows


def of_split(names: Sequence[str], split: str) -> list[str]:
    """Those of the files `names` whose path holds the split's name as a word, as in data/train-00000-of-00002.parquet.

    Where no file names any split, all are "train".
    """
    if split == "train" and not any(_mentions(name, word) for name in names for word in _SPLITS):
        return list(names)
    return [name for name in names if _mentions(name, split)]


def visible_files(folder: Path, *suffixes: str) -> list[str]:
    """The files below `folder` with one of `suffixes`, by their relative names, sorted; hidden ones are not data.

    Raises UserError for a file beside the copy of it that a notebook or a file manager made: all rows would come twice.
    """
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.is_dir()]
    names = sorted(name for path in found if not _hidden(name := path.relative_to(folder).as_posix()))
    for name in names:
        copy = _COPY.fullmatch(name)
        original = "".join(copy.group("start", "stem", "suffix")) if copy else name
        if original != name and original in names:
            raise UserError(f"{folder} has {name}, a copy of {original}: remove one of them")
    return names


def _hidden(name: str) -> bool:
    """As of pyarrow and Spark: what begins with a dot, or an underscore, such as _temporary/ and __MACOSX/."""
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _mentions(name: str, word: str) -> bool:
    return re.search(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", name.lower()) is not None


def _local_rows(path: Path, split: str | None, columns: Columns, data_files: Sequence[str]) -> RowSource:
    if path.is_file():
        if path.suffix in (".jsonl", ".csv"):
            return ImageFolder([path], columns)
        return ParquetRows([path], path.parent, columns)
    if not path.is_dir():
        raise UserError(f"dataset {path} does not exist; one from the Hub needs --source HF")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_rows(path, split, columns)
    names = _matching(str(path), visible_files(path, ".parquet"), data_files)
    if names:
        chosen = names if split is None else _require_split(str(path), names, split)
        return ParquetRows([path / name for name in chosen], path, columns)
    names = _matching(str(path), visible_files(path, ".jsonl", ".csv"), data_files)
    tables = names if split is None or not names else _require_split(str(path), names, split)
    if not data_files:
        described = [name for name in tables if name.rpartition("/")[2] in ("metadata.jsonl", "metadata.csv")]
        tables = described or [name for name in tables if "/" not in name]
    if not tables or (len(tables) > 1 and not data_files and not described):
        found = f"has {', '.join(tables[:5])}: name one of them" if tables else "has no Parquet, JSONL or CSV file"
        if not tables and (others := sorted(file.name for file in path.iterdir())):
            found += f", but {some(others)}"
        raise UserError(f"dataset {path} {found}")
    return ImageFolder([path / table for table in tables], columns)


def _saved_rows(path: Path, split: str | None, columns: Columns) -> RowSource:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # Arrow, JSON and file errors have no common class
        raise UserError(
            f"{path} cannot be read as a saved dataset: {type(error).__name__}: {one_line(error)}"
        ) from None
    if isinstance(saved, datasets.DatasetDict):
        name = split or ("train" if "train" in saved else next(iter(saved)) if len(saved) == 1 else "")
        if name not in saved:
            raise UserError(f"{path} has no split {name!r}; it has {', '.join(saved)}: name one, --split")
        return SavedRows(saved[name], path / name, columns)
    return SavedRows(saved, path, columns)


def _matching(where: str, names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    chosen = [name for name in names if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]
    if names and not chosen:
        raise UserError(f"{where} has no files {' or '.join(patterns)}; it has {some(names)}")
    return chosen


def _require_split(name: str, files: Sequence[str], split: str) -> list[str]:
    if chosen := of_split(files, split):
        return chosen
    raise UserError(f"{name} has no files of split {split!r}; it has {some(files)}")


def some(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _hub_rows(
    name: str, split: str | None, columns: Columns, config: str | None, data_files: Sequence[str], limit: int | None
) -> RowSource:
    data = HubDataset(name)
    files = [file for file in data.names if file.endswith(".parquet") and not _hidden(file)]
    if config is None and files:
        files = _matching(name, files, data_files)
        if split is not None or not data_files:
            files = _require_split(name, files, split or "train")
    else:
        split = split or "train"
        files = _files_of_config(data, split, config, data_files)
    if limit is None and all(file.endswith(".parquet") for file in files):
        root = data.fetch(files)
        return ParquetRows([root / file for file in files], root, columns, data.origin)

    names = [*columns.names(), *columns.extra]
    what = (split, config, tuple(data_files), limit, tuple(names))
    folder = _cached(data, "rows", what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder.with_suffix(".lock")):  # of several workers one fetches
        if not folder.is_dir():
            _require_network(data, "these rows are")
            with hub_errors(f"dataset {data.name}"), whole_folder(folder) as temporary:
                if limit is not None and all(file.endswith(".parquet") for file in files):
                    tables = _first_rows(data, files, columns, limit)
                else:
                    tables = _streamed(data, split or "train", config, data_files, columns, limit)
                _write(temporary, tables)
    return ParquetRows(sorted(folder.glob("*.parquet")), folder, columns, data.origin)


def _cached(data: HubDataset, kind: str, what: Any) -> Path:
    import datasets

    digest = hashlib.sha256(repr((data.repository, data.commit, what)).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "image_editing" / f"{kind}-{digest}"


def _require_network(data: HubDataset, what: str) -> None:
    if constants.is_offline_mode():
        raise UserError(f"offline (HF_HUB_OFFLINE is set) and {what} of dataset {data.name} not in the cache")


def _files_of_config(data: HubDataset, split: str, config: str | None, data_files: Sequence[str]) -> list[str]:
    """The files that `datasets` takes for a split, by its own rules; they are kept for a call without a network."""
    path = _cached(data, "files", (split, config, tuple(data_files)))
    if not path.is_file():
        _require_network(data, "the files of this configuration are")
        builder = _builder(data, config, split, data_files)
        found = builder.config.data_files or {}
        if split not in found:
            raise UserError(f"dataset {data.name} has no split {split!r}; it has {', '.join(map(str, found))}")
        write_json(path, [str(file).partition(f"@{data.commit}/")[2] for file in found[split]])
    return [str(file) for file in read_json(path)]


def _builder(data: HubDataset, config: str | None, split: str, data_files: Sequence[str]) -> Any:
    import datasets

    patterns = {split: list(data_files)} if data_files else None
    try:
        with hub_errors(f"dataset {data.name}"):
            builder = datasets.load_dataset_builder(
                data.repository, name=config, data_files=patterns, revision=data.commit
            )
    except UserError as error:
        if isinstance(error.__cause__, (ValueError, FileNotFoundError)):
            converted = f"{data.repository}@refs/convert/parquet"
            raise UserError(
                f"dataset {data.name}: {one_line(error.__cause__)} (--config-name or --data-files choose; or try its "
                f"automatic conversion, {converted})"
            ) from error
        raise
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _STREAMED_FORMATS:
        raise UserError(f"dataset {data.name} is in the form {kind}; read are {', '.join(_STREAMED_FORMATS)}")
    return builder


def _first_rows(data: HubDataset, files: Sequence[str], columns: Columns, limit: int) -> Iterator[pa.Table]:
    """Of Parquet files on the Hub: no more is asked for than these rows take, a few MB at a time."""
    for file in files:
        with data.open(file) as stream:
            parquet = pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False)
            present = parquet.schema_arrow.names
            if missing := [name for name in columns.names() if name not in present]:
                raise UserError(f"{file} of {data.name} has no column {missing[0]!r}; it has {', '.join(present)}")
            names = [name for name in dict.fromkeys([*columns.names(), *columns.extra]) if name in present]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
                yield pa.Table.from_batches([batch.slice(0, limit)])
                limit -= min(limit, len(batch))
                if not limit:
                    return


def _streamed(
    data: HubDataset, split: str, config: str | None, data_files: Sequence[str], columns: Columns, limit: int | None
) -> Iterator[pa.Table]:
    """Rows of whatever `datasets` reads, images as bytes."""
    rows = _builder(data, config, split, data_files).as_streaming_dataset(split=split)
    rows = rows if limit is None else rows.take(limit)
    for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        cells = {}
        for name in [*columns.names(), *columns.extra]:
            if name not in table.column_names and name in columns.names():
                raise UserError(f"dataset {data.name} has no column {name!r}; it has {', '.join(table.column_names)}")
            if name in columns.images():
                cells[name] = pa.array([_with_bytes(data, cell) for cell in table[name].to_pylist()], IMAGE_CELL)
            elif name in table.column_names:
                cells[name] = table[name]
        yield pa.table(cells)


def _with_bytes(data: HubDataset, cell: Any) -> dict[str, Any] | None:
    """An image cell with the file that it names, if that is one of the dataset's own; any other path stays a path."""
    if not isinstance(cell, dict):
        return cell if cell is None else {"bytes": cell if isinstance(cell, bytes) else None, "path": str(cell)[:80]}
    path = str(cell.get("path") or "")
    name = path.removeprefix(data.address)
    if cell.get("bytes") is None and path.startswith(data.address) and name in data.names:
        with data.open(name) as stream:
            return {"bytes": stream.read(), "path": None}
    return {"bytes": cell.get("bytes"), "path": path or None}


def _write(folder: Path, tables: Iterator[pa.Table]) -> None:
    """Tables behind each other as Parquet files, a new one where the columns have other types."""
    writer = None
    try:
        for table in tables:
            if writer is None or writer.schema != table.schema:
                if writer is not None:
                    writer.close()
                number = len(list(folder.iterdir()))
                writer = pq.ParquetWriter(folder / f"{number:05d}.parquet", table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise UserError("no rows were found")
