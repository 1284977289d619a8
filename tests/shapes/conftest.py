"""The world's two judges over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served_judge import Served

from shapes.judges import ANY_IMAGE, VERIFIER


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(VERIFIER, tmp_path_factory.mktemp("verifier") / "judge.url")
    yield served
    served.close()


@pytest.fixture(scope="module")
def any_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(ANY_IMAGE, tmp_path_factory.mktemp("any") / "judge.url")
    yield served
    served.close()
