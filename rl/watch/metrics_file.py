"""`metrics.jsonl`: one JSON object per step, appended as the run goes.

The file continues over a resume: lines of steps that will be done again are dropped first, so it reads like the file
of a run that was never interrupted (but for its seconds).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu3.errors import UserError
from emu3.files import whole_file

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends lines. start: first step to come; lines of that step and later ones are dropped. `lines` are those that
    stay and those that came."""

    def __init__(self, run: Path, start: int) -> None:
        path = run / NAME
        self.lines = [line for line in read_lines(run) if line["step"] < start] if path.is_file() else []
        with whole_file(path) as temporary:
            temporary.write_text("".join(map(_dumped, self.lines)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def append(self, metrics: dict[str, Any]) -> None:
        """Write a step's line and flush it. Raises ValueError for a number that is not finite."""
        self._file.write(_dumped(metrics))
        self._file.flush()
        self.lines.append(metrics)

    def close(self) -> None:
        self._file.close()


def read_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, in order of their steps. A last line without an end, of a run that is writing or was killed
    while it wrote, is left out. Raises UserError if there is no such file or another line is no step's."""
    path = run / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: {run} is no folder of a run, or of one that has done no step"
        ) from None
    lines = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            lines.append(json.loads(line))
            int(lines[-1]["step"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}: not a JSON object with a step") from None
    return lines


def _dumped(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics, allow_nan=False) + "\n"
