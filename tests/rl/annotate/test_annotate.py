"""The command on a small dataset: what is written, left out, asked again; and on to a training sequence."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stub_annotator import StubAnnotator
from tenacity import wait_none

from emu3.errors import UserError
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.run_folder import owned
from emu3.train_image_editing.dataset import EncodedRows
from emu3.train_image_editing.image_rows import IMAGE_CELL
from emu3.train_image_editing.prepare_data import PrepareArguments, prepare
from emu3.train_image_editing.shards import read_rows
from rl.annotate import run as annotate_module
from rl.annotate.__main__ import main
from rl.annotate.run import AnnotateArguments, annotate
from rl.reward.config import ANNOTATE, JudgeConfig

ROOT = Path(__file__).parents[3]
KEY = "reasoning_verbose"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubAnnotator]:
    monkeypatch.setattr("rl.reward.endpoints.BACKOFF", wait_none())
    judge = StubAnnotator()
    yield judge
    judge.close()


def image(seed: int, size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def call(tmp_path: Path, judge: StubAnnotator) -> Callable[..., dict[str, Any]]:
    """`call(rows, ...)` writes a dataset with an instruction per row, `edit 0` and so on, and annotates it."""
    names = ("source_image", "edited_image")

    def call(rows: int = 5, targets: dict[int, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        cells = {
            "source_image": [image(row) for row in range(rows)],
            "edited_image": [(targets or {}).get(row, image(100 + row)) for row in range(rows)],
        }
        columns = {name: pa.array(cells[name], IMAGE_CELL) for name in names}
        table = pa.table(columns | {"instruction": [f"edit {row}" for row in range(rows)]})
        pq.write_table(table, tmp_path / "data.parquet")
        asked = replace(ANNOTATE, base_url=judge.url, **arguments.pop("judge", {}))
        defaults = {"dataset_name": str(tmp_path / "data.parquet"), "source": "local", "judge": asked}
        return annotate(AnnotateArguments(output_path=tmp_path / "out", **(defaults | {"part_rows": 2} | arguments)))

    return call


def annotated(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_rows_keep_their_images_and_get_a_text(call: Any, judge: StubAnnotator, tmp_path: Path) -> None:
    """Guards the order of rows, images that are encoded anew, and boxes in the pixels of what was sent: 588 wide, so
    that a half begins at 294, which is 32 in the source."""
    summary = call()
    assert (summary["annotated"], summary["failed"], summary["judge"]) == (5, {}, "stub")
    rows = annotated(tmp_path / "out")
    assert [(row["id"], row["instruction"]) for row in rows] == [(str(row), f"edit {row}") for row in range(5)]
    assert all(row["source_image"]["bytes"] == image(number)["bytes"] for number, row in enumerate(rows))
    assert all(row["edited_image"]["bytes"] == image(100 + number)["bytes"] for number, row in enumerate(rows))
    assert judge.sizes == [(588, 448)] * 2
    assert rows[0][KEY] == "1. A thing. 2. The thing. 3. [32, 0, 64, 48] 4. It changes. 5. Another thing."


def test_what_has_no_chain_is_left_out_and_counted(call: Any, judge: StubAnnotator, tmp_path: Path) -> None:
    """Guards silent loss: every row is either annotated or in a note with its reason, and asked three times at most."""
    judge.replies = {"edit 1": "I cannot see any pictures.", "edit 2": None}
    broken = {"bytes": b"no image", "path": None}
    summary = call(6, targets={3: None, 4: broken})
    assert [row["id"] for row in annotated(tmp_path / "out")] == ["0", "5"]
    assert summary["annotated"] == 2
    kinds = ("no five steps", "no target picture", "the judge refused", "unreadable row")
    assert summary["failed"] == dict.fromkeys(kinds, 1)
    notes = [json.loads(file.read_text()) for file in sorted((tmp_path / "out").glob("part-*.json"))]
    failed = {entry["id"]: entry["detail"] for note in notes for entry in note["failed"]}
    assert failed["1"] == "I cannot see any pictures." and "not today" in failed["2"]
    assert failed["4"].startswith("edited_image") and set(failed) == {"1", "2", "3", "4"}
    assert judge.asked["edit 1"] == 3 and judge.asked["edit 2"] == 1 and judge.asked["edit 3"] == 0


def test_a_second_call_asks_nothing(call: Any, judge: StubAnnotator, tmp_path: Path) -> None:
    """Guards the cost of calling again, and of a crash between the replies and the part that holds them."""
    first = call()
    before, asked = annotated(tmp_path / "out"), judge.asked.total()
    (tmp_path / "out/part-00001.json").unlink()
    (tmp_path / "out/part-00002.parquet").unlink()
    (tmp_path / "out/part-00002.json").unlink()
    assert call() | {"last_run": None} == first | {"last_run": None}
    assert judge.asked.total() == asked and annotated(tmp_path / "out") == before


def test_a_row_without_answer_is_asked_for_again(call: Any, judge: StubAnnotator, tmp_path: Path) -> None:
    """Guards rows that a server in trouble would cost for ever, while those that got a reply stay."""
    judge.replies["edit 3"] = "away"
    assert call()["failed"] == {"no answer": 1}
    judge.replies.clear()
    asked = dict(judge.asked)
    assert call()["failed"] == {} and len(annotated(tmp_path / "out")) == 5
    assert judge.asked - type(judge.asked)(asked) == {"edit 3": 1}


def test_a_judge_that_is_away_ends_the_run(call: Any, judge: StubAnnotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards hours of retries, and the rows after it, which are not to be written off."""
    monkeypatch.setattr(annotate_module, "GIVE_UP_AFTER", 2)
    judge.replies = {f"edit {row}": "away" for row in range(2, 12)}
    with pytest.raises(UserError, match=r"the judge no longer replies.*not today"):
        call(12, part_rows=4, judge={"concurrency": 1})
    judge.replies.clear()
    assert call(12, part_rows=4)["annotated"] == 12 and judge.asked["edit 0"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cot_key": "other"}, 'holds a run with cot_key="reasoning_verbose", this one has cot_key="other"'),
        ({"cot_key": "instruction"}, "is a column of the data already"),
        ({"limit": 0}, "at least 1"),
        ({"edited_image_key": "target"}, "no column 'target'"),
        ({"judge": {"model": "gpt"}}, "gpt"),
        ({"judge": {"concurrency": 0}}, "at least 1"),
        (
            {"judge": {"image_format": "png"}},
            r'judge_settings\.image_format=\(not set\), this one has judge_settings\.image_format="png"',
        ),
        ({"judge": {"temperature": None}}, r"this one has judge_settings\.temperature=null"),
    ],
)
def test_what_cannot_be_is_one_line(call: Any, settings: dict[str, Any], message: str) -> None:
    call()
    with pytest.raises(UserError, match=message):
        call(**settings)


def test_the_script_reaches_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the flags that the script's head shows, and a judge that is named by a variable."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    flags = "--source local --dataset-name pairs.parquet --output-path out --original-image-key input"
    more = "--edited-image output --edit-instruction text --CoT-key why --limit 7"
    done = subprocess.run(
        ["bash", tmp_path / "scripts/annotate.sh", *flags.split(), *more.split()],
        env=os.environ | {"JUDGE_URL": "http://judge/v1", "JUDGE_MODEL": "qwen"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = done.stdout.splitlines()
    assert arguments[:2] == ["-m", "rl.annotate"]
    seen: list[AnnotateArguments] = []
    summary = {"annotated": 1, "failed": {}}
    monkeypatch.setattr("rl.annotate.__main__.annotate", lambda arguments: seen.append(arguments) or summary)
    monkeypatch.setattr("sys.argv", arguments[1:])
    main()
    columns = {"original_image_key": "input", "edited_image_key": "output", "edit_instruction_key": "text"}
    judge = JudgeConfig("http://judge/v1", "qwen", image_format="jpeg")
    told = {"source": "local", "cot_key": "why", "limit": 7}
    assert seen == [AnnotateArguments("pairs.parquet", Path("out"), judge, **told, **columns)]


def test_nothing_annotated_is_an_error(call: Any, judge: StubAnnotator) -> None:
    """Guards a wrong column or a text-only model from ending in an empty dataset."""
    judge.replies = {f"edit {row}": "no" for row in range(3)}
    with pytest.raises(UserError, match="no row was annotated; the first, 0: no five steps: no"):
        call(3)


def test_the_text_reaches_a_training_sequence(call: Any, world: Path, tmp_path: Path) -> None:
    """Guards the way to SFT: the column that is written is the one that tokenizing reads, the boxes are then those of
    the resized image (64x48 at an area of 192 is 16x12), and the target of the row begins with the text."""
    call()
    arguments = PrepareArguments(
        dataset_name=str(tmp_path / "out"),
        output_path=str(tmp_path / "codes"),
        model_path=str(world / "vision"),
        edited_image_key="edited_image",
        cot_keys=[KEY],
        id_key="id",
        source="local",
        image_area=192,
    )
    manifest = prepare(arguments)
    assert manifest is not None and (manifest["rows"], manifest["failed"]) == (5, [])
    rows = read_rows(tmp_path / "codes")
    text = "1. A thing. 2. The thing. 3. [8, 0, 16, 12] 4. It changes. 5. Another thing."
    assert rows[0].cot == {KEY: text}
    tokenizer = TextTokenizer.from_pretrained(world / "model")
    example = EncodedRows(rows, tokenizer, [KEY], max_positions=4000)[0]
    thought = tokenizer.encode(f" Let's think step by step. <|start thinking|> {KEY}: {text}<|end thinking|>")
    assert example.tokens[example.start :][: len(thought)].tolist() == thought


def test_a_folder_in_use_is_refused(call: Any, judge: StubAnnotator, tmp_path: Path) -> None:
    """Two annotations in one folder ask everything twice and overwrite each other's parts."""
    with owned(tmp_path / "out"), pytest.raises(UserError, match="out is in use by"):
        call()
    assert call()["annotated"] == 5
    assert not list((tmp_path / "out").glob(".owner*"))
