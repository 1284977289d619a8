"""The page that a newcomer reads names the files that there are."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location

from dev.architecture import PAGE, ROOT, with_tree


def test_the_page_shows_todays_tree() -> None:
    """Write it anew with `python -m dev.architecture` where a module came, went, or says something else."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_tree(page) == page


def test_the_walks_name_files_that_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    walks = text[text.index("## Four walks") : text.index("## Which options")]
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.suffix in (".py", ".sh")]
    for name in re.findall(r"`([\w/]+\.(?:py|sh))`", walks):
        assert any(file == name or file.endswith(f"/{name}") for file in files), name


def test_the_longest_files_of_tests_are_there() -> None:
    """Guards the order of the suite: a file that was renamed would begin last, when one core alone is at work."""
    spec = spec_from_file_location("order", ROOT / "tests" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [name for name in module.LONGEST_FIRST if not (ROOT / "tests" / name).is_file()] == []
