"""From the rows of a data set to annotated rows: some hundreds at a time, a part of the output each.

Pictures are decoded off the event loop and no more of them than the judge takes at once. A judge that has stopped
answering ends the run: it would take hours to find that out row by row.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageFile, read_row, row_id
from emu3.train_image_editing.open_rows import RowSource, open_rows
from rl.annotate.annotator import NO_ANSWER, Annotator
from rl.annotate.parts import ANSWERS_FILE, PICTURE, FailedRow, Parts
from rl.annotate.steps import QUESTION, Failure
from rl.reward.cache import AnswerCache
from rl.reward.judge import Judge

UNREADABLE = "unreadable row"
GIVE_UP_AFTER = 64
"""So many rows in a row without an answer end a run: the judge is away."""


@dataclass(frozen=True)
class Settings:
    """What the command takes. `area`: pixels of the pictures that the judge gets. `part_rows`: rows of a part, whose
    encoded pictures are in memory at once. `concurrency`: questions in flight."""

    dataset_name: str
    output_path: Path
    judge_url: str
    judge_model: str | None = None
    source: Literal["HF", "local"] = "HF"
    split: str | None = None
    original_image_key: str = "source_image"
    edited_image_key: str = "edited_image"
    edit_instruction_key: str = "instruction"
    id_key: str | None = None
    task_key: str | None = None
    cot_key: str = "reasoning_verbose"
    limit: int | None = None
    image_area: int = 262144
    concurrency: int = 64
    part_rows: int = 512


def annotate(settings: Settings) -> dict[str, Any]:
    """Annotate a data set; returns the sums that stand in annotations.json.

    Raises `UserError` for bad input, an output folder of another run, a judge that cannot be used or stops answering,
    and if no row at all was annotated.
    """
    limit = 1 if settings.limit is None else settings.limit
    numbers = (settings.image_area, settings.concurrency, settings.part_rows, limit)
    if min(numbers) < 1:
        raise UserError(f"image area, concurrency, rows of a part and limit are at least 1: {numbers}")
    columns = Columns(
        source=settings.original_image_key,
        instruction=settings.edit_instruction_key,
        edited=settings.edited_image_key,
        id=settings.id_key,
        task=settings.task_key,
    )
    if settings.cot_key in columns.names():
        raise UserError(f"--cot-key {settings.cot_key} is a column of the data already")
    rows = open_rows(settings.dataset_name, settings.source, settings.split, columns)
    return asyncio.run(_Run(settings, columns, rows).annotate())


class _Run:
    def __init__(self, settings: Settings, columns: Columns, rows: RowSource) -> None:
        self._settings = settings
        self._columns = columns
        self._rows = rows
        self._unanswered = 0

    async def annotate(self) -> dict[str, Any]:
        settings = self._settings
        indices = np.arange(len(self._rows))[: settings.limit]
        windows = [indices[start : start + settings.part_rows] for start in range(0, len(indices), settings.part_rows)]
        with AnswerCache(settings.output_path / ANSWERS_FILE) as cache:
            judge = Judge(
                settings.judge_url,
                settings.judge_model,
                concurrency=settings.concurrency,
                image_format="jpeg",
                cache=cache,
            )
            try:
                name = await judge.model_name()
                parts = Parts(settings.output_path, self._asked(name), self._schema())
                annotator = Annotator(judge, settings.image_area, settings.cot_key)
                with tqdm(total=len(indices), unit="row", disable=None) as bar:
                    for part, window in enumerate(windows):
                        if not parts.finished(part):
                            parts.write(part, *await self._annotate_part(window, annotator))
                        bar.update(len(window))
                counters = judge.counters.as_dict()
            finally:
                await judge.aclose()
        tokens = {key: int(counters[key]) for key in ("prompt_tokens", "completion_tokens")}
        return parts.summarise(len(windows), judge=name, last_run=tokens)

    async def _annotate_part(
        self, window: np.ndarray, annotator: Annotator
    ) -> tuple[list[dict[str, Any]], list[FailedRow]]:
        # A few more than the judge takes at once are decoded, not the whole part.
        gate = asyncio.Semaphore(self._settings.concurrency + 8)
        read = zip(window.tolist(), self._rows.read(window), strict=True)
        outcomes = await asyncio.gather(*(self._annotate_row(index, cells, annotator, gate) for index, cells in read))
        if self._unanswered >= GIVE_UP_AFTER:
            failures = [row.failure for row in outcomes if isinstance(row, FailedRow)]
            reason = next(failure.detail for failure in failures if failure.kind == NO_ANSWER)
            raise UserError(f"the judge has stopped answering ({reason}): its answers are kept, call this again")
        return (
            [outcome for outcome in outcomes if isinstance(outcome, dict)],
            [outcome for outcome in outcomes if isinstance(outcome, FailedRow)],
        )

    async def _annotate_row(
        self, index: int, cells: Mapping[str, Any] | BadRow, annotator: Annotator, gate: asyncio.Semaphore
    ) -> dict[str, Any] | FailedRow:
        if isinstance(cells, BadRow):
            return FailedRow(str(index), Failure(UNREADABLE, str(cells)))
        name = row_id(cells, self._columns, index)
        async with gate:
            if self._unanswered >= GIVE_UP_AFTER:
                return FailedRow(name, Failure(NO_ANSWER, "not asked any more"))
            try:
                row = await asyncio.to_thread(read_row, cells, self._columns, index)
            except BadRow as error:
                return FailedRow(name, Failure(UNREADABLE, str(error)))
            found = await annotator.annotate(row)
        if isinstance(found, Failure):
            self._unanswered = self._unanswered + 1 if found.kind == NO_ANSWER else 0
            return FailedRow(name, found)
        self._unanswered = 0
        columns = self._columns
        return {
            columns.id or "id": name,
            columns.source: {"bytes": _encoded(cells[columns.source])},
            self._settings.edited_image_key: {"bytes": _encoded(cells[self._settings.edited_image_key])},
            columns.instruction: row.instruction,
            **({columns.task: row.task} if columns.task else {}),
            self._settings.cot_key: found,
        }

    def _asked(self, judge: str) -> dict[str, Any]:
        """What decides the content of the output."""
        settings = self._settings
        return {
            "data": self._rows.contents,
            "columns": self._columns.names(),
            "cot_key": settings.cot_key,
            "limit": settings.limit,
            "image_area": settings.image_area,
            "part_rows": settings.part_rows,
            "judge": judge,
            "question": hashlib.sha256(QUESTION.encode()).hexdigest(),
        }

    def _schema(self) -> pa.Schema:
        columns = self._columns
        pictures: Sequence[str] = (columns.source, self._settings.edited_image_key)
        texts = [columns.id or "id", columns.instruction, columns.task, self._settings.cot_key]
        return pa.schema(
            [*((name, PICTURE) for name in pictures), *((name, pa.string()) for name in texts if name is not None)]
        )


def _encoded(cell: Any) -> bytes:
    """The bytes of a picture cell that could be read."""
    data: bytes = cell.read() if isinstance(cell, ImageFile) else cell["bytes"] if isinstance(cell, Mapping) else cell
    return data
