"""From the rows of a dataset to annotated rows: some hundreds at a time, a part of the output folder each.

    OUT/settings.json            what the run was asked for; another run does not go on in this folder
    OUT/answers.jsonl            the judge's replies as they arrive, so that an interruption costs none
    OUT/part-00000.parquet       the annotated rows of the part, in the dataset's order
    OUT/part-00000.json          written last: the part is done; its rows, and those that failed with their reasons
    OUT/annotations.json         the sums, written when all parts are done

A part in which a row got no reply is tried again by the next call; what was replied comes from the cache. Images are
decoded off the event loop and no more of them than the judge takes at once. A judge that no longer replies ends the
run: it would take hours to find that out row by row.

The client is the one of the reward (`rl.reward.client`): its retries, its deadline, its bound on what is in flight, its
cache of replies, and its second try with another seed for a reply that cannot be used.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emu3.errors import UserError
from emu3.files import read_json, whole_file, write_json
from emu3.run_folder import SettingsFile, owned
from emu3.settings import check_numbers, setting
from emu3.tokenizer.images import MAX_AREA
from emu3.train_image_editing.image_rows import IMAGE_CELL, BadRow, Columns, image_bytes, read_row, row_id
from emu3.train_image_editing.open_rows import open_rows
from emu3.train_image_editing.row_files import RowSource
from rl.annotate.steps import NO_REPLY, QUESTION, NoChain, ask_for_chain
from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import ANNOTATE, JudgeConfig

UNREADABLE = "unreadable row"
GIVE_UP_AFTER = 64
"""So many rows in a row without a reply end a run: the judge is unavailable."""
REPLIES_FILE = "answers.jsonl"
SETTINGS_FILE = "settings.json"
FORMAT = 2
"""Of the settings; 1 had no version."""
SUMMARY_FILE = "annotations.json"


@dataclass(frozen=True)
class AnnotateArguments:
    """What the command takes."""

    dataset_name: str
    output_path: Path
    judge: JudgeConfig
    source: Literal["HF", "local"] = "HF"
    split: str | None = None
    original_image_key: str = "source_image"
    edited_image_key: str = "edited_image"
    edit_instruction_key: str = "instruction"
    id_key: str | None = None
    task_key: str | None = None
    cot_key: str = "reasoning_verbose"
    limit: int | None = setting("take the first rows only", None, least=1)
    image_area: int = setting("pixels of the images that the judge gets", 262144, least=1, most=MAX_AREA)
    part_rows: int = setting("rows of a part, whose encoded images are in memory at once", 512, least=1)


def annotate(arguments: AnnotateArguments) -> dict[str, Any]:
    """Annotate a dataset; returns the sums that stand in annotations.json.

    Raises `UserError` for bad input, an output folder of another run, a judge that cannot be used or no longer replies,
    and if no row at all was annotated.
    """
    check_numbers(arguments, lambda name: f"--{name.replace('.', '-').replace('_', '-')}")
    columns = Columns(
        source=arguments.original_image_key,
        instruction=arguments.edit_instruction_key,
        edited=arguments.edited_image_key,
        id=arguments.id_key,
        task=arguments.task_key,
    )
    if arguments.cot_key in columns.names():
        raise UserError(f"--cot-key {arguments.cot_key} is a column of the data already")
    rows = open_rows(arguments.dataset_name, arguments.source, arguments.split, columns, limit=arguments.limit)
    with owned(arguments.output_path):
        return asyncio.run(_Run(arguments, columns, rows).annotate())


class _Run:
    def __init__(self, arguments: AnnotateArguments, columns: Columns, rows: RowSource) -> None:
        self._arguments = arguments
        self._columns = columns
        self._rows = rows
        self._image_columns = (columns.source, arguments.edited_image_key)
        self._unanswered = 0

    async def annotate(self) -> dict[str, Any]:
        arguments = self._arguments
        indices = np.arange(len(self._rows))[: arguments.limit]
        windows = [
            indices[start : start + arguments.part_rows] for start in range(0, len(indices), arguments.part_rows)
        ]
        with ReplyCache(arguments.output_path / REPLIES_FILE) as cache:
            judge = Judge(arguments.judge, cache)
            try:
                name = await judge.model_name()
                parts = AnnotatedParts(arguments.output_path, self._asked(name), self._schema())
                with tqdm(total=len(indices), unit="row", disable=None) as bar:
                    for part, window in enumerate(windows):
                        if not parts.finished(part):
                            parts.write(part, *await self._annotate_part(window, judge))
                        bar.update(len(window))
                counters = judge.counters.as_dict()
            finally:
                await judge.aclose()
        tokens = {key: int(counters[key]) for key in ("prompt_tokens", "completion_tokens")}
        return parts.summarize(len(windows), judge=name, last_run=tokens)

    async def _annotate_part(self, window: np.ndarray, judge: Judge) -> tuple[list[dict[str, Any]], list[LeftOut]]:
        # A few more than the judge takes at once are decoded, not the whole part.
        gate = asyncio.Semaphore(self._arguments.judge.concurrency + 8)
        read = zip(window.tolist(), self._rows.read(window), strict=True)
        outcomes = await asyncio.gather(*(self._annotate_row(index, cells, judge, gate) for index, cells in read))
        if self._unanswered >= GIVE_UP_AFTER:
            reasons = [row.why for row in outcomes if isinstance(row, LeftOut)]
            reason = next(why.detail for why in reasons if why.kind == NO_REPLY)
            raise UserError(f"the judge no longer replies ({reason}): its replies are kept, call this again")
        return (
            [outcome for outcome in outcomes if isinstance(outcome, dict)],
            [outcome for outcome in outcomes if isinstance(outcome, LeftOut)],
        )

    async def _annotate_row(
        self, index: int, cells: Mapping[str, Any] | BadRow, judge: Judge, gate: asyncio.Semaphore
    ) -> dict[str, Any] | LeftOut:
        if isinstance(cells, BadRow):
            return LeftOut(str(index), NoChain(UNREADABLE, str(cells)))
        name = row_id(cells, self._columns, index)
        async with gate:
            if self._unanswered >= GIVE_UP_AFTER:
                return LeftOut(name, NoChain(NO_REPLY, "not asked any more"))
            try:
                row = await asyncio.to_thread(read_row, cells, self._columns, index)
            except BadRow as error:
                return LeftOut(name, NoChain(UNREADABLE, str(error)))
            found = await ask_for_chain(judge, row, self._arguments.image_area, self._arguments.cot_key)
        if isinstance(found, NoChain):
            self._unanswered = self._unanswered + 1 if found.kind == NO_REPLY else 0
            return LeftOut(name, found)
        self._unanswered = 0
        columns = self._columns
        return {
            columns.id or "id": name,
            **{name: {"bytes": image_bytes(cells[name], name)} for name in self._image_columns},
            columns.instruction: row.instruction,
            **({columns.task: row.task} if columns.task else {}),
            self._arguments.cot_key: found,
        }

    def _asked(self, judge: str) -> dict[str, Any]:
        """What decides the content of the output."""
        arguments = self._arguments
        judge_settings = arguments.judge.changed(ANNOTATE)
        return {
            "data": self._rows.contents,
            "columns": self._columns.names(),
            "cot_key": arguments.cot_key,
            "limit": arguments.limit,
            "image_area": arguments.image_area,
            "part_rows": arguments.part_rows,
            "judge": judge,
            "question": hashlib.sha256(QUESTION.encode()).hexdigest(),
            **({"judge_settings": judge_settings} if judge_settings else {}),
        }

    def _schema(self) -> pa.Schema:
        columns = self._columns
        texts = [columns.id or "id", columns.instruction, columns.task, self._arguments.cot_key]
        return pa.schema(
            [
                *((name, IMAGE_CELL) for name in self._image_columns),
                *((name, pa.string()) for name in texts if name is not None),
            ]
        )


@dataclass(frozen=True)
class LeftOut:
    """A row that was left out, by its id."""

    id: str
    why: NoChain


class AnnotatedParts:
    """Parts under `folder`, of rows as `schema` has them. Raises `UserError` if a run with other settings is there."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], schema: pa.Schema) -> None:
        self.folder = folder
        self._schema = schema
        SettingsFile(folder / SETTINGS_FILE, version=FORMAT, remedy="choose another folder").record(settings)

    def finished(self, part: int) -> bool:
        """Whether a part is there and nothing of it can be had by asking again."""
        note = self._note(part)
        return note.exists() and not any(entry["kind"] == NO_REPLY for entry in read_json(note)["failed"])

    def write(self, part: int, rows: Sequence[Mapping[str, Any]], failed: Sequence[LeftOut]) -> None:
        """A part without a single annotated row has a note alone."""
        if rows:
            with whole_file(self.folder / f"part-{part:05d}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(list(rows), schema=self._schema), temporary)
        notes = [{"id": row.id, "kind": row.why.kind, "detail": row.why.detail} for row in failed]
        write_json(self._note(part), {"annotated": len(rows), "failed": notes})

    def summarize(self, parts: int, **more: Any) -> dict[str, Any]:
        """Write and return the sums over the parts. Raises `UserError` if no row at all was annotated."""
        notes = [read_json(self._note(part)) for part in range(parts)]
        failed = Counter(entry["kind"] for note in notes for entry in note["failed"])
        annotated = sum(note["annotated"] for note in notes)
        summary = {"annotated": annotated, "failed": dict(sorted(failed.items())), **more}
        write_json(self.folder / SUMMARY_FILE, summary)
        if not annotated:
            first = next(entry for note in notes for entry in note["failed"])
            raise UserError(f"no row was annotated; the first, {first['id']}: {first['kind']}: {first['detail']}")
        return summary

    def _note(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.json"
