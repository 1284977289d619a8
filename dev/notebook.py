"""Run a notebook in a folder: python -m dev.notebook docs/notebooks/edit.ipynb --folder runs/notebook

The notebook itself stays without outputs; what it showed is written into the folder. A cell that fails ends it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from emu3.errors import run_main


def run(notebook: Path, folder: Path) -> Path:
    """Returns the copy with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    folder.mkdir(parents=True, exist_ok=True)
    book = nbformat.read(notebook, as_version=4)
    NotebookClient(book, timeout=3600, resources={"metadata": {"path": str(folder)}}).execute()
    output = folder / notebook.name
    nbformat.write(book, output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a notebook in a folder.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where its files go, and its copy with outputs")
    options = parser.parse_args()
    print(run(options.notebook, options.folder))


if __name__ == "__main__":
    run_main(main)
