"""PIE-Bench as one Parquet file, from the folder that its authors give out.

    python -m baselines.benchmarks.pie_bench --folder PIE-Bench_v1 --output data/benchmarks/piebench.parquet
    BENCHMARKS=piebench DATA_DIR=data/benchmarks METRICS="structure_distance_source psnr_background lpips_background \\
        l2_background ssim_background clip_t clip_t_edited" bash scripts/reproduce_tables.sh     # the paper's Table 10

The folder holds mapping_file.json and annotation_images/. Of a mask the file has the runs of pixels that belong to the
edit, [start, length, start, length, ...], row by row. As in PIE-Bench's own evaluation the outermost pixels belong to
it as well, whatever the runs say. Brackets in the prompts only mark what differs and are dropped.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from emu3.errors import UserError, run_main
from emu3.files import read_json, whole_file
from emu3.flags import CommandParser
from emu3.tokenizer.images import read_image
from emu3.train_image_editing.image_rows import IMAGE_CELL, BadRow, ImageFile

MAPPING_FILE, IMAGES = "mapping_file.json", "annotation_images"
TASKS = (
    *("random", "change object", "add object", "delete object", "change content"),
    *("change pose", "change color", "change material", "change background", "change style"),
)

_TEXTS = ("id", "task", "instruction", "source_caption", "target_caption")
SCHEMA = pa.schema([*((name, pa.string()) for name in _TEXTS), ("image", IMAGE_CELL), ("mask", IMAGE_CELL)])


def convert(folder: Path, output: Path) -> int:
    """Write all samples of `folder` to `output`, whole or not at all; returns how many.

    Raises `UserError`, naming the sample, for what is missing or is not as PIE-Bench has it.
    """
    samples = read_json(folder / MAPPING_FILE)
    if not isinstance(samples, dict) or not samples:
        raise UserError(f"{folder / MAPPING_FILE} holds no samples")
    rows = list(_rows(folder, samples))
    with whole_file(output) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    return len(rows)


def decode_mask(runs: list[int], width: int, height: int) -> np.ndarray:
    """bool (height, width), true where the edit belongs. Runs end with the image.

    Raises `UserError` for runs that are none.
    """
    numbers = np.array(runs)
    if numbers.ndim != 1 or len(numbers) % 2 or (len(numbers) and (numbers.dtype.kind != "i" or numbers.min() < 0)):
        raise UserError("its mask is no list of starts and lengths")
    pixels = np.zeros(height * width, bool)
    for start, length in numbers.reshape(-1, 2):
        pixels[start : start + length] = True
    mask: np.ndarray = pixels.reshape(height, width)
    mask[[0, -1], :] = mask[:, [0, -1]] = True
    return mask


def _rows(folder: Path, samples: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for id, sample in samples.items():
        try:
            data = ImageFile((folder / IMAGES).resolve(), sample["image_path"]).read()
            width, height = read_image(io.BytesIO(data), sample["image_path"]).size
            mask = io.BytesIO()
            Image.fromarray(decode_mask(sample["mask"], width, height)).save(mask, "png")
            yield {
                "id": id,
                "task": TASKS[int(sample["editing_type_id"])],
                "instruction": sample["editing_instruction"],
                "source_caption": _plain(sample["original_prompt"]),
                "target_caption": _plain(sample["editing_prompt"]),
                "image": {"bytes": data, "path": None},
                "mask": {"bytes": mask.getvalue(), "path": None},
            }
        except (UserError, BadRow) as error:
            raise UserError(f"{folder / MAPPING_FILE}: sample {id}: {error}") from None
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{folder / MAPPING_FILE}: sample {id} is not as in PIE-Bench ({reason})") from None


def _plain(prompt: str) -> str:
    return prompt.replace("[", "").replace("]", "")


def main() -> None:
    parser = CommandParser(description="Turn PIE-Bench into one Parquet file.")
    parser.add_argument("--folder", type=Path, required=True, help=f"holds {MAPPING_FILE} and {IMAGES}/")
    parser.add_argument("--output", type=Path, required=True, help="such as data/benchmarks/piebench.parquet")
    options = parser.parse_args()
    print(f"{options.output}: {convert(options.folder, options.output)} samples")


if __name__ == "__main__":
    run_main(main)
