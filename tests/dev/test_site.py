"""The site: each page is in its menu and made of texts that are there, and nothing of it comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from installed import skip_without

from dev.site import PAGES, ROOT, page_text, sections, with_links


def in_menu(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in in_menu(part)]


def test_the_menu_has_every_page_once() -> None:
    """A page that nobody can come to, and a menu that leads nowhere."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = in_menu(yaml.safe_load(text)["nav"])
    assert sorted(pages) == sorted([*(path.name for path in ROOT.glob("docs/*.md")), *PAGES])


@pytest.mark.parametrize("page", PAGES)
def test_its_texts_are_there(page: str) -> None:
    """A section of the README that was renamed would be missing from the site."""
    text = page_text(page)
    assert text.startswith("# ") and len(text) > 300
    assert "](docs/" not in text and "](../" not in text


def test_links_are_turned() -> None:
    text = (
        "[a](docs/data.md) [b](rl/README.md#runs) ![c](assets/demo.png) [d](https://x.org/a.md) [e](#here) [f](LICENSE)"
    )
    turned = "[a](data.md) [b](rl.md#runs) ![c](assets/demo.png) [d](https://x.org/a.md) [e](#here) [f](LICENSE.txt)"
    assert with_links(text, "README.md") == turned
    assert (
        with_links("[a](../docs/config.md) ![b](../assets/x.png)", "rl/README.md")
        == "[a](config.md) ![b](assets/x.png)"
    )
    assert (
        with_links("[a](../README.md) [b](templates/reward.py)", "docs/x.md")
        == "[a](index.md) [b](templates/reward.py)"
    )


def test_a_comment_in_a_shell_block_is_no_heading() -> None:
    found = sections("# T\nx\n## A\n```bash\n## no\n```\n## B\ny\n")
    assert found == {"": "# T\nx\n", "A": "## A\n```bash\n## no\n```\n", "B": "## B\ny\n"}


def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Broken links, anchors and names of the reference are warnings, and those end the build (some 3 s of CPU: the
    whole site). A font or a script from elsewhere would tell a stranger who reads, and be missing without a network."""
    skip_without("material")
    skip_without("mkdocstrings")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    for file in tmp_path.rglob("*.html"):
        page = file.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="([^"]+)"', page)
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|icon|preload)"[^>]*href="([^"]+)"', page)
        loaded += re.findall(r'<link[^>]*href="([^"]+)"[^>]*rel="(?:stylesheet|preconnect|icon|preload)"', page)
        assert loaded and [url for url in loaded if url.startswith(("http", "//"))] == [], file
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    assert "Edited images" in reference or "emu3.mllm.editor.Editor" in reference
