"""Pages whose every row is a promise with a test: docs/reliability.md and docs/published-names.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = pytest.mark.parametrize("page", ["docs/reliability.md", "docs/published-names.md"])


@PAGES
def test_each_row_names_tests_that_there_are(page: str) -> None:
    """Guards a promise whose test was renamed or removed, and one that never had any."""
    rows = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| fault |", "| published |"))]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (file, test)


@PAGES
def test_the_readme_leads_there(page: str) -> None:
    assert f"({page})" in (ROOT / "README.md").read_text(encoding="utf-8")
