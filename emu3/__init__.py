"""The model: images to codes, codes and instructions to edited images, and its supervised training.

from emu3 import Editor

editor = Editor.from_pretrained("org/name")
[edited] = editor.edit(image, "make the sky purple")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu3.mllm.editor import EditedImage, Editor

__all__ = ["EditedImage", "Editor"]


def __getattr__(name: str) -> Any:
    """`Editor` and what it returns, with torch and transformers only once they are asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'emu3' has no attribute {name!r}")
    from emu3.mllm import editor

    return getattr(editor, name)
