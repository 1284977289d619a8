"""Names of somebody's own: what is loaded, what is said where nothing can be, and who is never asked to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from emu3.errors import UserError
from emu3.extensions import _load, is_extension, load_extension, make_extension, source_digests
from emu3.files import sha256_of
from emu3.train_image_editing.row_files import RowSource


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package `garden` with a module `rewards`."""
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden" / "__init__.py").write_text("")
    module = tmp_path / "garden" / "rewards.py"
    module.write_text("def mine(judge):\n    return judge\n\nNUMBER = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield module
    _load.cache_clear()
    for name in ("garden", "garden.rewards"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("garden.rewards:mine", True),
        ("rewards.py:mine", True),
        ("/a folder/with:colon/rewards.py:mine", True),
        ("org/name", False),
        ("org/name@main", False),
        ("http://127.0.0.1:8000", False),
        ("C:/data", False),
        ("data/pairs.parquet", False),
        ("corrected", False),
        ("viescore", False),
        ("a:b:c", False),
        (None, False),
    ],
)
def test_nothing_else_is_spelled_so(text: Any, is_one: bool) -> None:
    """A Hub id, a path or an address that were taken for a name would run code."""
    assert is_extension(text) is is_one


def test_a_module_and_a_file(package: Path) -> None:
    assert load_extension("garden.rewards:mine", "reward", "(judge)")(3) == 3
    assert load_extension(f"{package}:NUMBER", "reward", kind=int) == 3
    digest = sha256_of(package)
    assert source_digests("garden.rewards:mine", None, "corrected", f"{package}:mine") == {
        "garden.rewards:mine": digest,
        f"{package}:mine": digest,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "gardn.rewards:mine",
            "reward gardn.rewards:mine: there is no module gardn.rewards: install it, or",
        ),
        ("garden.rewrds:mine", "there is no module garden.rewrds"),
        ("garden.rewards:mien", "garden.rewards has no mien; the nearest is mine"),
        ("garden.rewards:NUMBER", r"expected to call it as \(judge\), got a int"),
        ("mine", "expected package.module:name or path/to/file.py:name"),
        ("nowhere/rewards.py:mine", "nowhere/rewards.py does not exist"),
    ],
)
def test_each_fault_is_one_line(package: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_extension(text, "reward", "(judge)")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_like_this", "cannot be imported: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("def mine(judge:\n", "cannot be imported: SyntaxError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def mine(judge, weight): ...", r"expected to call it as \(judge\), it takes \(judge, weight\)"),
        ("def mine(): ...", "too many positional arguments"),
    ],
)
def test_a_file_that_does_not_do(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "bad.py").write_text(source)
    _load.cache_clear()
    with pytest.raises(UserError, match=words) as error:
        load_extension(f"{tmp_path / 'bad.py'}:mine", "reward", "(judge)")
    assert "\n" not in str(error.value)


WHOLE = """
class Rows:
    contents, files, origin = "", [], "local"
    def __init__(self, columns, data_files): ...
    def __len__(self): return 1
    def read(self, indices): yield {}
    def column(self, name): return []
    def file(self, index): ...
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        ('contents, files, origin = "", [], "local"', 'contents, files = "", []', "has no origin"),
        ("def column(self, name)", "def columns(self, name)", "its column: it is missing"),
        ("def read(self, indices)", "def read(self)", r"its read: expected to call it as \(indices\)"),
        ("def __len__(self): return 1", "", "its __len__: it is missing"),
    ],
)
def test_what_is_made_has_all_members(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    """A reader without `column` would fail hours later, in the middle of a run."""
    (tmp_path / "rows.py").write_text(WHOLE.replace(old, new) if old else WHOLE)
    _load.cache_clear()

    def make() -> Any:
        name = f"{tmp_path / 'rows.py'}:Rows"
        return make_extension(name, "dataset", "(columns, data_files)", None, [], protocol=RowSource)

    if words is None:
        assert len(make()) == 1
    else:
        with pytest.raises(UserError, match=words):
            make()
