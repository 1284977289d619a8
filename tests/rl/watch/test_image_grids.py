"""The grid of best and worst completions."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emu3.mllm.layout import GridGrammar, TokenLayout
from rl.reward.scores import Outcome, Score, Unavailable
from rl.rollout.engine import Prompt, Rollout
from rl.scoring import Episode
from rl.watch.watch import GROUPS, ImageGroup, ScoredImage, draw, groups_of, write_grid

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def colours(image: Image.Image) -> list[tuple[int, int, int]]:
    """The pure colours in the image, from left to right."""
    pixels = np.asarray(image)
    found = []
    for colour in (RED, GREEN, BLUE, GREY):
        places = np.argwhere((pixels == colour).all(-1))
        if len(places) > 1000:
            found.append((places[:, 1].min(), colour))
    return [colour for _, colour in sorted(found)]


def judged(prompts: int, outcomes: list[Outcome], reasoning: str | None = None) -> list[tuple[Episode, Outcome]]:
    """As many rollouts of each prompt as share the outcomes among them."""
    grammar = GridGrammar(TokenLayout(300, 16), 2, 3, (1, 2, 3))
    found: list[Episode] = []
    for number in range(prompts):
        prompt = Prompt(f"p{number}", (1,), grammar, np.zeros((2, 3), np.uint16), f"edit {number}", "add")
        rollout = Rollout([1], np.zeros(1, np.float32), np.zeros((2, 3), np.uint16), reasoning)
        found += [Episode(prompt, rollout, plain(GREY), plain(RED), Future())] * (len(outcomes) // prompts)
    return list(zip(found, outcomes, strict=True))


def test_source_best_and_worst_stand_in_this_order() -> None:
    """A completion without a score must be neither: it is not known to be bad."""
    images = [ScoredImage(plain(BLUE), 3.0), ScoredImage(plain((0, 0, 0)), None), ScoredImage(plain(GREEN), 9.0)]
    grid = draw([ImageGroup("make it green", "colour", plain(GREY), images)], "run, step 1")
    assert colours(grid) == [GREY, GREEN, BLUE]


def test_one_scored_image_is_the_best_and_none_the_worst() -> None:
    grid = draw(
        [ImageGroup("x", None, plain(GREY), [ScoredImage(plain(RED), 0.0), ScoredImage(plain(GREEN), None)])], "t"
    )
    assert colours(grid) == [GREY, RED]


def test_rollouts_are_put_together_by_prompt_with_their_outcomes() -> None:
    """Guards a best completion of one prompt shown beside the source of another."""
    outcomes: list[Outcome] = [Score(1.0, {}), Score(2.0, {}), Unavailable("late")] * 2
    groups = groups_of(judged(2, outcomes))
    assert [group.instruction for group in groups] == ["edit 0", "edit 1"]
    assert [[image.score for image in group.images] for group in groups] == [[1.0, 2.0, None]] * 2


def test_a_grid_lies_in_the_run_and_is_bounded(tmp_path: Path) -> None:
    """Prompts whose rollouts all failed have no row; of the rest the first few."""
    outcomes: list[Outcome] = [Unavailable("late")] * 3 + [Score(5.0, {})] * (3 * (GROUPS + 2))
    many = judged(GROUPS + 3, outcomes)
    path = write_grid(tmp_path, 50, many)
    assert path == tmp_path / "pictures" / "step_000050.png"
    few = write_grid(tmp_path, 51, many[: 3 * (GROUPS + 1)])
    assert few is not None
    with Image.open(path) as one, Image.open(few) as other:
        assert one.size == other.size
    assert write_grid(tmp_path, 52, many[:3]) is None
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["step_000050.png", "step_000051.png"]


def test_a_full_disk_leaves_no_half_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError):
        write_grid(tmp_path, 1, judged(1, [Score(1.0, {})]))
    assert not list((tmp_path / "pictures").iterdir())


@pytest.mark.parametrize("size", [(1, 1), (24, 16), (256, 256), (2000, 300), (30, 900)])
def test_images_of_any_size_and_texts_of_any_length_fit(size: tuple[int, int]) -> None:
    """Large ones are shrunk and small ones enlarged into their frame; a chain of thought has three lines."""
    images = [ScoredImage(plain(RED, size), score, "First I look. " * 90) for score in (1.0, 2.0)]
    group = ImageGroup("make the sky purple and " * 40, "a_task", plain(GREY, size), images)
    grid = draw([group] * 3, "t" * 300)
    assert grid.width == 1012 and grid.height < 3 * 340 + 60


def test_thoughts_take_room_only_where_there_are_any() -> None:
    with_thoughts, without = (
        draw(groups_of(judged(1, [Score(1.0, {})], reasoning)), "t").height for reasoning in ("I see a circle", None)
    )
    assert with_thoughts > without
