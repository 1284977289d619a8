"""The inverse of the cumulative distribution, on rows that are written down here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emu3.mllm.sampling import choose, uniform_numbers

PROBABILITIES = torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0], dtype=torch.float64)


def draw(uniform: float, temperature: float = 1.0, top_k: int | None = None) -> tuple[int, float]:
    index, logprob = choose(PROBABILITIES.log(), torch.tensor(uniform, dtype=torch.float64), temperature, top_k)
    return int(index), float(logprob)


@pytest.mark.parametrize(
    ("uniform", "index"), [(0.0, 0), (0.199, 0), (0.201, 2), (0.699, 2), (0.701, 3), (float(np.nextafter(1.0, 0.0)), 3)]
)
def test_the_uniform_number_names_the_token(uniform: float, index: int) -> None:
    """Guards the edges: 0 and the number next to 1 must not pick a token of probability 0."""
    assert draw(uniform) == (index, pytest.approx(float(PROBABILITIES[index].log())))


def test_top_k_renormalises_the_draw_and_not_the_log_probability() -> None:
    """Guards the trainer's quantity: it does not know of the cut. Kept are 0.5 and 0.3, so 2 up to 0.625."""
    assert draw(0.0, top_k=2) == (2, pytest.approx(np.log(0.5)))
    assert draw(0.624, top_k=2)[0] == 2
    assert draw(0.626, top_k=2) == (3, pytest.approx(np.log(0.3)))
    assert draw(0.999, top_k=1)[0] == 2
    assert draw(0.1, top_k=50)[0] == 0


def test_temperature_scales_before_the_softmax() -> None:
    scaled = PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()
    assert draw(0.0, temperature=2.0) == (0, pytest.approx(float(scaled[0].log())))


def test_greedy_ignores_the_uniform_number() -> None:
    assert draw(0.999, temperature=0.0) == draw(0.0, temperature=0.0) == (2, pytest.approx(np.log(0.5)))


def test_logits_that_are_not_finite_stay_inside_the_row() -> None:
    """Guards against an index behind the row, which a GPU answers with a dead process."""
    logits = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0]])
    index, logprob = choose(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), 1.0, None)
    assert ((index >= 0) & (index < 2)).all()
    assert not logprob.isfinite().any()


def test_uniform_numbers_are_a_function_of_the_seed() -> None:
    """Guards reproducibility across versions: the generator and its seeding are part of a run's identity."""
    np.testing.assert_allclose(uniform_numbers((1, 2), 2), [0.2996269638247443, 0.0739441105013603], rtol=1e-15)
    np.testing.assert_array_equal(uniform_numbers((1, 2), 5), uniform_numbers((1, 2), 9)[:5])
    assert not np.array_equal(uniform_numbers((1, 2), 5), uniform_numbers((2, 1), 5))
    assert uniform_numbers((1, 2), 10_000).mean() == pytest.approx(0.5, abs=0.02)
