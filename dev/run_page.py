"""Run what a page tells its reader to run: python -m dev.run_page docs/own-edits.md

The blocks behind a line `<!-- run -->`, of bash or Python, one after the other in the present folder; the first that
fails ends it with its exit code.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from emu3.errors import run_main

_BLOCK = re.compile(r"<!-- run -->\n+```(bash|python)\n(.*?)```", re.DOTALL)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of each."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the marked blocks of a page in the present folder.")
    parser.add_argument("page", type=Path)
    for language, text in blocks_of(parser.parse_args().page):
        print(text, flush=True)
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        if code := subprocess.run(command, check=False).returncode:
            sys.exit(code)


if __name__ == "__main__":
    run_main(main)
