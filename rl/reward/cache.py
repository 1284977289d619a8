"""Answers of a judge by the content of the question, in memory and, if wanted, in a JSON-lines file.

The key covers everything that an answer depends on (see `Judge`), so a key is never asked twice and an entry
never goes stale. One process writes one file. Each answer is appended by a single write as it arrives; a line
that a crash cut short is removed when the file is opened next, and asked for again.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO

from emu3.errors import UserError


class AnswerCache:
    """Answers by key.

    path: file to read and continue, made at the first new answer; None keeps them in memory only.
    keep: this many answers at most stay in memory, the newest; the file keeps all.
    Raises `UserError` if the file holds something else.
    """

    def __init__(self, path: Path | None = None, keep: int = 100_000) -> None:
        self._keep = keep
        self._path = path
        self._answers: dict[str, str] = {}
        self._file: IO[bytes] | None = None
        if path is not None and path.is_file():
            self._file = path.open("a+b", buffering=0)
            self._load(path, self._file)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        return self._answers.get(key)

    def put(self, key: str, answer: str) -> None:
        self._remember(key, answer)
        if self._path is not None:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
            self._file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remember(self, key: str, answer: str) -> None:
        self._answers[key] = answer
        if len(self._answers) > self._keep:
            del self._answers[next(iter(self._answers))]

    def _load(self, path: Path, file: IO[bytes]) -> None:
        file.seek(0)
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            try:
                entry = json.loads(line)
                self._remember(entry["key"], entry["answer"])
            except (ValueError, KeyError, TypeError):
                self.close()
                raise UserError(
                    f"{path}, line {number}: not an answer of a judge; remove the line or name another cache file"
                ) from None
