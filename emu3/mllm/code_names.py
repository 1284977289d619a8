"""The names that published files give the visual codes, and `emu3_vision_tokens.txt`, which lists them.

The names only tell how many codes there are: their ids are arithmetic (`emu3.mllm.layout`), and no code is ever
looked for in a text.
"""

from __future__ import annotations

from pathlib import Path

from emu3.errors import UserError
from emu3.mllm.layout import TokenLayout

CODE_PREFIX = "<|visual token "


def code_names(codebook_size: int) -> list[str]:
    """The name of each visual code, in order."""
    return [f"{CODE_PREFIX}{code:06d}|>" for code in range(codebook_size)]


def write_vision_file(path: Path, layout: TokenLayout) -> None:
    """Write `emu3_vision_tokens.txt`: the three image marks, then a name for each visual code, one a line."""
    path.write_text("\n".join(_lines(layout)) + "\n", encoding="utf-8")


def read_vision_file(path: Path) -> int:
    """The number of visual codes. Raises UserError if the file is missing or its lines are others."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the folder holds no Emu3 tokenizer") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    codebook_size = len(lines) - 3
    expected = _lines(TokenLayout(codebook_size=codebook_size))
    for number, (line, form) in enumerate(zip(lines, expected, strict=False), start=1):
        if line != form:
            raise UserError(f"{path}, line {number}: expected {form}, found {line[:40]!r}")
    if codebook_size < 1:
        raise UserError(f"{path} names no visual code")
    return codebook_size


def _lines(layout: TokenLayout) -> list[str]:
    return [*layout.special_forms()[-3:], *code_names(layout.codebook_size)]
