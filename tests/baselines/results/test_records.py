"""The two files between the steps, read by another version of the project than the one that wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from baselines.results.records import ScoredSample, read_records, read_settings, write_records
from emu3.errors import UserError


def rewritten(path: Path, version: bytes | None) -> Path:
    """A copy of the file with another version in it, or with none."""
    table = pq.read_table(path)
    metadata = {name: value for name, value in (table.schema.metadata or {}).items() if name != b"version"}
    metadata |= {} if version is None else {b"version": version}
    copy = path.with_name(f"{version}.parquet")
    pq.write_table(table.replace_schema_metadata(metadata), copy)
    return copy


def test_a_newer_file_is_refused_and_one_without_a_version_read(
    tmp_path: Path, make_score: Callable[..., ScoredSample]
) -> None:
    """Guards numbers of a format that this version takes for its own."""
    path, scores = tmp_path / "scores.parquet", [make_score("a", 3.0), make_score("b", None)]
    write_records(path, scores, {"judge": "j"})
    assert pq.read_schema(path).metadata[b"version"] == b"2"
    for file in (path, rewritten(path, None), rewritten(path, b"1")):
        assert read_records(file, ScoredSample) == scores and read_settings(file) == {"judge": "j"}
    with pytest.raises(UserError, match="is a folder, expected a Parquet file in it"):
        read_records(tmp_path, ScoredSample)
    newer = rewritten(path, b"3")
    for read in (lambda: read_records(newer, ScoredSample), lambda: read_settings(newer)):
        with pytest.raises(UserError, match=r"parquet has format 3, this version of the project reads up to 2"):
            read()
    with pytest.raises(UserError, match="is not what this command writes"):
        read_settings(rewritten(path, b"two"))
