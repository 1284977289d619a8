"""Mixtures: shares, repetition, and an order that a position alone continues."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sft_world

from emu3.errors import UserError
from emu3.train_image_editing import sft
from emu3.train_image_editing.dataset import Mixture
from emu3.train_image_editing.shards import read_rows


def per_row(mixture: Mixture, dataset: int, epoch: int = 0) -> Counter[int]:
    return Counter(row for index, row in (mixture.at(i, epoch) for i in range(len(mixture))) if index == dataset)


def test_coefficients_are_shares_and_repeat_above_one() -> None:
    mixture = Mixture([10, 4, 6], [0.5, 2.5, 0.0])
    assert len(mixture) == 5 + 10
    assert sorted(per_row(mixture, 0).values()) == [1] * 5
    assert sorted(per_row(mixture, 1).values()) == [2, 2, 3, 3]
    assert not per_row(mixture, 2)


def test_without_coefficients_smaller_sets_reach_the_largest() -> None:
    mixture = Mixture([7, 3])
    assert sum(per_row(mixture, 0).values()) == sum(per_row(mixture, 1).values()) == 7
    assert sorted(per_row(mixture, 1).values()) == [2, 2, 3]


def test_the_seed_chooses_the_subset() -> None:
    """A fixed subset would make every seed of an experiment see the same rows."""
    first, again, other = (set(per_row(Mixture([100], [0.3], seed), 0)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_fraction_takes_other_rows_in_the_next_pass() -> None:
    """A coefficient of 0.13 saw the same 130 of 1,000 rows for ever; seven passes see 910, and the eighth begins with
    another order. Whole copies stay."""
    mixture = Mixture([1000, 5], [0.13, 2.0], seed=4)
    passes = [set(per_row(mixture, 0, epoch)) for epoch in range(9)]
    assert {len(rows) for rows in passes} == {130}
    assert len(set.union(*passes[:7])) == 910 and passes[7] & set.union(*passes[:7]) and passes[7] not in passes[:7]
    assert all(per_row(mixture, 1, epoch) == dict.fromkeys(range(5), 2) for epoch in range(9))
    assert [set(per_row(Mixture([1000, 5], [0.13, 2.0], seed=4), 0, epoch)) for epoch in (8, 0, 3)] == [
        *(passes[8], passes[0], passes[3])
    ]
    stream = [row for dataset, row in islice(mixture.stream(3), 2 * len(mixture)) if dataset == 0]
    assert len(set(stream)) > 250 and list(islice(mixture.stream(150), 30)) == list(islice(mixture.stream(), 180))[150:]


def test_a_run_of_several_passes_sees_all_rows_and_so_does_one_that_went_on(
    model: Path, train_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the way of the pass's number to the rows, in a resumed run too."""
    seen: list[int] = []
    plain = Mixture.at

    def noted(mixture: Mixture, index: int, epoch: int = 0) -> tuple[int, int]:
        seen.append(plain(mixture, index, epoch)[1])
        return plain(mixture, index, epoch)

    monkeypatch.setattr(Mixture, "at", noted)
    settings = sft.SftArguments(model_name_or_path=str(model), train_data=[str(train_data)], coefficients=[0.5])
    rows = len(read_rows(train_data))
    half = rows // 2

    def train(name: str, **values: Any) -> list[int]:
        seen.clear()
        steps = {
            "per_device_train_batch_size": 1,
            "save_strategy": "steps",
            "save_steps": half + 2,
            "max_steps": 2 * half,
        }
        sft.train(settings, sft_world.trainer_arguments(tmp_path / name, **steps | values))
        return list(seen)

    whole = train("whole")
    assert rows % 2 == 0 and len(whole) == rows and sorted(whole) == list(range(rows))
    shutil.rmtree(tmp_path / "whole/final")
    (tmp_path / "whole/finished.json").unlink(missing_ok=True)
    for folder in sorted((tmp_path / "whole").glob("checkpoint-*"))[1:]:
        shutil.rmtree(folder)
    assert train("whole")[-half + 2 :] == whole[half + 2 :]


def test_a_stream_continues_from_a_position() -> None:
    """A resumed run that restarts its order trains twice on the first rows and never on the last."""
    mixture = Mixture([5, 2], seed=3)
    whole = list(islice(mixture.stream(), 25))
    for position in (0, 4, 10, 13):
        assert list(islice(mixture.stream(position), 25 - position)) == whole[position:]
    whole = list(islice(Mixture([5, 5], seed=3).stream(), 20))
    assert Counter(whole[:10]) == Counter(whole[10:20])
    assert whole[:10] != whole[10:20]


@pytest.mark.parametrize(
    ("sizes", "coefficients", "message"),
    [
        ([3, 4], [1.0], "1 coefficients for 2"),
        ([3], [-1.0], "not negative"),
        ([3], [float("nan")], "not negative"),
        ([3], [0.0], "leave no row"),
        ([3, 0], None, "needs rows"),
    ],
)
def test_what_does_not_fit_is_refused(sizes: list[int], coefficients: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(sizes, coefficients)
