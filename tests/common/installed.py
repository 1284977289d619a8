"""Whether a library of an extra is there, without importing it: that takes seconds, in every worker of the suite."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def skip_without(library: str) -> None:
    """Skip this module, or this test, where `library` is not installed."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed", allow_module_level=True)
