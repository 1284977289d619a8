"""Judges to ask, and images to ask about."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from stub_judge import Reply, StubJudge, answers
from tenacity import wait_none


@pytest.fixture
def stub() -> Iterator[StubJudge]:
    judge = StubJudge()
    yield judge
    judge.close()


@pytest.fixture
def stubs() -> Iterator[Callable[..., StubJudge]]:
    """Makes judges; those that are still up end with the test."""
    made: list[StubJudge] = []

    def make(port: int = 0) -> StubJudge:
        made.append(StubJudge(port))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@pytest.fixture
def say() -> Callable[..., Reply]:
    return answers


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once; what the server asks for in Retry-After still counts."""
    monkeypatch.setattr("rl.reward.endpoints.BACKOFF", wait_none())


@pytest.fixture
def image() -> Callable[[int], Image.Image]:
    def make(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8))

    return make
