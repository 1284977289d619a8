"""Where the Parquet files of a benchmark are: a file or folder, a folder of many benchmarks, or the Hub.

The Hub's cache and `HF_HUB_OFFLINE=1` do what they do everywhere (`emu3.train_image_editing.open_rows`). Nothing but
Parquet files is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from baselines.benchmarks.spec import Benchmark
from emu3.errors import UserError
from emu3.hub import HUB_ID
from emu3.train_image_editing.open_rows import HubData, of_split


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
        raise UserError(f"benchmark {benchmark.name}: {error} (of files on disk, tell --data-dir)") from error


def _from_hub(name: str, patterns: Sequence[str] | None, split: str | None) -> DataFiles:
    data = HubData(name)
    present = [file for file in data.names if file.endswith(".parquet")]
    if patterns is None and split is None:
        raise UserError(f"{name} is on the Hub: name its split, --split; it has {_some(present)}")
    if patterns is None:
        chosen, wanted = of_split(present, split or ""), f"of split {split!r}"
    else:
        chosen = [file for file in present if any(fnmatch(file, pattern) for pattern in patterns)]
        wanted = " or ".join(patterns)
    if not chosen:
        raise UserError(f"{name} has no files {wanted}; it has {_some(present)}")
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
