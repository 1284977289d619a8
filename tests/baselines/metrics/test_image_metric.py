"""Which images are compared, at which size, in which batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import sample, waves

from baselines.metrics import image_metric
from baselines.metrics.image_metric import Against, Missing, batches, framed_pair, score_pairs

CPU = torch.device("cpu")


@pytest.mark.parametrize("against", ["target", "source"])
def test_edit_is_compared_with_what_was_asked_for(against: Against) -> None:
    """Comparing with the source where the target was meant turns "right" into "unchanged"."""
    row = sample()
    pair = framed_pair(row, against)
    assert not isinstance(pair, Missing)
    assert pair[0].tobytes() == row.edited.tobytes()
    assert pair[1].tobytes() == getattr(row, against).tobytes()


def test_without_target_there_is_a_reason_and_no_number() -> None:
    assert framed_pair(sample(target=None), "target") == Missing("the sample has no target image")


def test_edit_of_another_size_is_scaled_to_the_reference_and_the_reference_stays() -> None:
    """Scaling the reference would blur what the data calls right."""
    row = sample(edited=waves(5, 96, 80))
    pair = framed_pair(row, "target")
    assert not isinstance(pair, Missing) and row.target is not None
    assert pair[1].tobytes() == row.target.tobytes()
    assert pair[0].tobytes() == row.edited.resize((48, 40), Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize("size", [(40, 48), (54, 40)])
def test_another_frame_is_no_small_difference(size: tuple[int, int]) -> None:
    """A portrait squeezed into a landscape gave a number as if something could be compared."""
    pair = framed_pair(sample(edited=waves(5, *size)), "target")
    assert isinstance(pair, Missing)
    assert f"{size[0]}x{size[1]} and 48x40" in pair.reason


def test_batches_hold_one_size_each_and_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_metric, "BATCH_PIXELS", 200)
    sizes = {0: (10, 10), 1: (20, 10), 2: (10, 10), 3: (10, 10), 4: (100, 10)}
    assert list(batches(sizes)) == [[0, 2], [3], [1], [4]]


def test_scores_come_back_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are regrouped by size: a value must find the way back to its row."""
    monkeypatch.setattr(image_metric, "BATCH_PIXELS", 48 * 40 * 2)
    sizes = [(48, 40), (24, 20), (48, 40), (24, 20), (48, 40)]
    rows = [sample(edited=Image.new("RGB", size, (level, 0, 0)), target=Image.new("RGB", size)) for level, size in
            enumerate(sizes)]  # fmt: skip
    rows.insert(1, sample(target=None))
    scores = score_pairs(rows, "target", lambda edited, _: edited[:, 0].double().amax((1, 2)), CPU)
    assert scores == [0.0, Missing("the sample has no target image"), 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_becomes_a_reason(value: float) -> None:
    """One infinite sample made the mean of a whole table row infinite."""
    scores = score_pairs([sample()], "target", lambda edited, _: torch.full((len(edited),), value), CPU, "too equal")
    assert scores == [Missing("too equal")]
