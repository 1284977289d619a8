"""What the site shows that does not lie in docs/: sections of the README and other pages, by a hook of mkdocs

Each text stands in one place. Links are written as GitHub needs them; here they are turned to the site's pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "index.md": ("README.md", "", ("", "Two commands", "Edit a photo", "What came out", "Citation", "License")),
    "tokenize.md": ("README.md", "Data", ()),
    "sft.md": ("README.md", "Training on your own", ()),
    "scale.md": ("README.md", "Going to 4xH100", ()),
    "evaluate.md": ("README.md", "Evaluation", ()),
    "rl.md": ("rl/README.md", "", ()),
    "memory.md": ("assets/memory.md", "", ()),
    "study-page.md": ("assets/study/study.md", "", ()),
    "contributing.md": ("CONTRIBUTING.md", "", ()),
    "changelog.md": ("CHANGELOG.md", "", ()),
}
"""By page: the file that it is from; the section that it is, empty for all of the file; the sections to take of it, the
first named "" for what stands before any, empty for all."""
BEHIND = {"sft.md": "\n::: emu3.train_image_editing.sft.SftArguments\n"}
"""What follows a page's text."""
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(#[^)\s]*)?(?=\))")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages, and what they show."""
    from mkdocs.structure.files import File

    for page in PAGES:
        files.append(File.generated(config, page, content=page_text(page)))
    for path in (*ROOT.glob("assets/**/*.png"), ROOT / "LICENSE", ROOT / "CITATION.cff"):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name if "/" in name else f"{name}.txt", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links of the pages that do lie in docs/."""
    name = page.file.src_uri
    return markdown if name in PAGES else with_links(markdown, f"docs/{name}")


def page_text(page: str) -> str:
    """The text of a page of `PAGES`, its links turned."""
    source, section, parts = PAGES[page]
    text = (ROOT / source).read_text(encoding="utf-8")
    if section:
        text = sections(text)[section].replace("## ", "# ", 1)
    elif parts:
        text = "".join(sections(text)[part] for part in parts)
    return with_links(text, source) + BEHIND.get(page, "")


def sections(text: str) -> dict[str, str]:
    """A page's sections by their titles, each with its heading; what stands before the first one is called "". A line
    of a shell's comment is no heading."""
    found: dict[str, str] = {}
    title, fenced = "", False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            title = line[3:].strip()
        found[title] = found.get(title, "") + line
    return found


def with_links(text: str, source: str) -> str:
    """`text`, which stands in the file `source`, with links to the site's pages; a link to a file of the code, which
    the site does not have, becomes its name."""
    pages = {file: page for page, (file, section, _) in PAGES.items() if not section}

    def turned(match: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        anchor = match[2] or ""
        if file in pages:
            return pages[file] + anchor
        if file in ("LICENSE", "CITATION.cff"):
            return f"{file}.txt"
        return file.removeprefix("docs/") + anchor

    return _LINK.sub(turned, text)
