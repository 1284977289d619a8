"""An Emu3 with random weights and its image tokenizer, a few thousand parameters each, saved as checkpoints are."""

from __future__ import annotations

from pathlib import Path

from tiny_vision import save_tiny_vision

from shapes.new_model import build


def save_emu3(data: Path, folder: Path) -> Path:
    """`folder/model` and `folder/vision`, 8x8 pixels per code; the text tokenizer is learned from `data`."""
    save_tiny_vision(folder / "vision")
    build([data], folder / "vision", folder / "model", ranks=300, layers=1, width=32, seed=0)
    return folder
