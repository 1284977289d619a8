"""The tree of docs/architecture.md, from the first lines of the modules themselves: python -m dev.architecture

What stands in the page between the two marks is written anew; `tests/test_architecture.py` notices a page that is old.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("emu3", "rl", "baselines", "shapes", "dev")
BEGIN, END = "<!-- tree: python -m dev.architecture -->\n", "<!-- end of tree -->\n"


def tree() -> str:
    """A table for each folder with modules, in the order of `PACKAGES`."""
    return "\n".join(
        f"### {folder}/\n\n| file | |\n|---|---|\n" + "".join(f"| `{name}` | {line} |\n" for _, name, line in rows)
        for folder, rows in groupby(_modules(), key=lambda row: row[0])
    )


def with_tree(page: str) -> str:
    """The page with the present tree between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + tree() + "\n" + END + rest.partition(END)[2]


def _modules() -> Iterator[tuple[str, str, str]]:
    """Folder, name and first line of each module that says what it is; markers of packages say nothing of their own."""
    for package in PACKAGES:
        paths = sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent.as_posix(), path.name))
        for path in paths:
            if path.name != "__init__.py":
                doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
                line = doc.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
                yield path.parent.relative_to(ROOT).as_posix(), path.name, line.removesuffix(".")


def main() -> None:
    PAGE.write_text(with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
