"""The six benchmarks: what the verifier must say of every row, and which rows they are."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shapes.benchmarks import BENCHMARKS, make_row, write
from shapes.edits import COURTESIES, SIMPLE, SceneEdit, in_peoples_words, parse
from shapes.edits.complex import Both
from shapes.edits.other import OTHER, Beside, Restore, Shift, Steps
from shapes.edits.simple import Recolour
from shapes.scene import FLAWS, SLOTS, Scene, Shape, grain, photograph, random_scene
from shapes.verifier import judge_agreement, judge_edit, judge_quality

SCENE = Scene("white", (Shape("red", "circle"), None, Shape("blue", "square"), None, None, None))


def image(cell: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"]))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_target_scores_full_and_every_copy_has_no_success(name: str) -> None:
    """One row that cannot be judged, or a way to score by doing nothing, and the table says something else than it
    should. These are the rows that the command writes."""
    tasks: Counter[str] = Counter()
    for number in range(200):
        row = make_row(name, 0, False, number)
        source, target = image(row["input"]), image(row["output"])
        edit = judge_edit(row["instruction"], source, target)
        assert (*edit.scores, *judge_quality(target).scores) == (10, 10, 10, 10), (row["instruction"], edit.reason)
        assert judge_edit(row["instruction"], source, source).scores == (0, 10), row["instruction"]
        assert judge_agreement(target, target, row["instruction"]).scores == (10,)
        assert judge_agreement(target, source, row["instruction"]).scores[0] <= 5, row["instruction"]
        tasks[row["task"]] += 1
    assert min(tasks.values()) >= 15, "a task without rows has no mean"
    assert tasks.keys() == {"simple": {kind.kind for kind in SIMPLE}}.get(name, tasks.keys())


def test_a_row_depends_on_its_number_its_seed_and_its_purpose_alone(tmp_path: Path) -> None:
    """Settings chosen on rows that are reported afterwards would make the report worthless."""
    write(tmp_path, ["crowded"], rows=3, seed=0)
    rows = pq.read_table(tmp_path / "crowded.parquet").to_pylist()
    assert rows == [make_row("crowded", 0, False, number) for number in range(3)]
    others = [make_row("crowded", *which) for which in ((0, True, 0), (1, False, 0), (0, False, 3))]
    assert len({row["input"]["bytes"] for row in [*rows, *others]}) == 6
    assert len({row["id"] for row in [*rows, others[0]]}) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"crowded.parquet"}


@pytest.mark.parametrize("kind", [*SIMPLE, *OTHER], ids=lambda kind: kind.kind)
def test_every_wording_is_read_with_and_without_courtesy(kind: type[SceneEdit]) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        while (edit := kind.choose(random_scene(rng), rng)) is None:
            pass
        for wording in (*kind.wordings, *kind.other_wordings):
            text = wording.format(**vars(edit))
            assert parse(text) == edit
            assert parse(asked := in_peoples_words(text, rng)) == edit
            assert asked == text or asked.startswith(COURTESIES)


def test_steps_are_read_back_in_their_order_and_count_alike() -> None:
    """A third step that is half of the whole would be rewarded beyond its share."""
    rng = np.random.default_rng(5)
    lengths = set()
    for _ in range(200):
        while (edit := Steps.choose(scene := random_scene(rng), rng)) is None:
            pass
        read = parse(edit.worded(rng))
        assert isinstance(read, Both) and read.steps == edit.steps
        done = [step.apply(scene, rng) for step in edit.steps]
        assert [round(edit.success(scene, after) * len(done), 6) for after in done] == [1] * len(done)
        lengths.add(len(done))
    assert lengths == {2, 3}


def test_a_thing_at_the_wrong_place_is_half_a_success() -> None:
    shift, beside = Shift("red", "circle", "down"), Beside("green", "circle", "below", "red", "circle")
    for edit, thing in ((shift, SCENE.slots[0]), (beside, Shape("green", "circle"))):
        start = SCENE.put(0, None) if edit is shift else SCENE
        assert edit.success(SCENE, start.put(3, thing)) == 1
        assert edit.success(SCENE, start.put(4, thing)) == 0.5
        assert edit.success(SCENE, SCENE) == 0
    assert beside.success(SCENE, SCENE.put(3, Shape("green", "square"))) == 0.25
    assert shift.success(SCENE, SCENE.put(0, None)) == 0


@pytest.mark.parametrize("flaw", FLAWS)
def test_restoring_by_half_is_half_a_success(flaw: str) -> None:
    """Graded, so that a first step is worth something; another thing that is lost costs restraint, not success."""
    noise = grain(np.random.default_rng(0))
    full = random_scene(np.random.default_rng(6), (3, 3))

    def look(strength: float, scene: Scene = full) -> Image.Image:
        return Image.fromarray(photograph(Scene(scene.background, scene.slots, flaw, strength), noise))

    source = look(0.9)
    verdicts = [judge_edit(f"remove the {flaw}", source, look(strength)).scores for strength in (0.9, 0.6, 0.45, 0.0)]
    successes = [success for success, _ in verdicts]
    assert successes == sorted(successes) and (successes[0], successes[-1]) == (0, 10) and 4 <= successes[2] <= 8
    assert {restraint for _, restraint in verdicts} == {10}
    lost = look(0.0, full.put(full.filled()[0], None))
    assert judge_edit(f"remove the {flaw}", source, lost).scores == (10, 6)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_that_is_not_there_cannot_be_judged(flaw: str) -> None:
    clean = Image.fromarray(photograph(SCENE, grain(np.random.default_rng(0))))
    with pytest.raises(ValueError, match=f"no {flaw} in the picture"):
        judge_edit(f"remove the {flaw}", clean, clean)


def test_only_restorations_change_their_source() -> None:
    rng = np.random.default_rng(7)
    scene = random_scene(rng, (SLOTS, SLOTS))
    assert Restore("blur").source(scene, rng).flaw == "blur"
    assert Recolour("red", "circle", "blue").source(scene, rng) == scene
