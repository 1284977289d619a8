"""A reader of one's own: edits that lie as `NAME-before.png`, `NAME-after.png` and `NAME.txt` in folders.

    python -m emu3.train_image_editing.prepare_data --data docs/templates/reader.py:TrioFolder \
        --data-files photos/one photos/two --vision VISION --output data/trios \
        --original-image-key before --edited-image-key after --edit-instruction-key text

A class of the columns that are asked for and of `--data-files`, with the members of `RowSource`
(emu3/train_image_editing/row_files.py). `contents` is a digest by which a run notices that its data changed. Cells are
encoded images (bytes, or an `ImageFile`) and texts. A row that cannot be read comes as a `BadRow` with its reason.
`baselines.evaluate --data` takes it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageFile


class TrioFolder:
    """files: the texts, one per row."""

    origin = "local"

    def __init__(self, columns: Columns, data_files: Sequence[str]) -> None:
        if missing := [name for name in columns.names() if name not in ("before", "after", "text")]:
            raise UserError(f"a folder of trios has no column {missing[0]!r}; it has before, after, text")
        self.files = [path.resolve() for folder in data_files for path in sorted(Path(folder).glob("*.txt"))]
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(path.read_bytes())
            digest.update(repr([self._image(path, name).size() for name in ("before", "after")]).encode())
        self.contents = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """The rows of these numbers."""
        for index in indices:
            path = self.files[index]
            yield {
                "before": self._image(path, "before"),
                "after": self._image(path, "after"),
                "text": path.read_bytes(),  # what is no UTF-8 is then a bad row
            }

    def column(self, name: str) -> list[Any]:
        """The cells of one column of all rows."""
        return [None if isinstance(row, BadRow) else row[name] for row in self.read(range(len(self)))]

    def file(self, index: int) -> Path:
        """The file that holds the row."""
        return self.files[index]

    @staticmethod
    def _image(path: Path, which: str) -> ImageFile:
        return ImageFile(path.parent, f"{path.stem}-{which}.png")
