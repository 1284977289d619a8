"""How far the published evaluation's ways with an image are from this one's, in pixels, for docs/evaluation.md.

    python -m dev.protocol_gaps BENCHMARK.parquet --benchmark aurora

No editor is run: the edit is the source itself, so that nothing but the way to the judge differs. Each way gives the
image that a judge would get. Where only a border was cropped, what both show is compared; elsewhere the published image
is brought to the size of ours (bicubic). L1, in levels of 255, and PSNR are means over the samples whose pixels differ,
with 95% intervals by the bootstrap.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from baselines.benchmarks.samples import Samples, find_rows
from baselines.benchmarks.spec import BENCHMARKS
from baselines.editors.editing import FACTOR, SourceFrame
from baselines.tables.statistics import mean_interval
from emu3.checkpoint_facts import DEFAULT_AREA
from emu3.errors import run_main
from emu3.tokenizer.images import scale_image

PUBLISHED_AREA = 65_636
OMNIGEN_SIDE = 512
BATCH = 8
Pair = tuple[Image.Image, Image.Image]
"""The image that a judge gets here, and the one that it got there."""


@dataclass(frozen=True)
class Gap:
    """resized: samples of another size, differing: of other pixels, of `n`. area: mean of the published image's pixels
    over ours. l1 in levels of 255, psnr in decibels: mean and 95% interval over those that differ; None where none
    does."""

    name: str
    n: int
    resized: int
    differing: int
    area: float
    l1: tuple[float, float, float] | None
    psnr: tuple[float, float, float] | None


def source_cropped(sources: Sequence[Image.Image]) -> Iterator[Pair]:
    for source in sources:
        frame = SourceFrame(source, DEFAULT_AREA)
        yield frame.shown, frame.uncropped


def jpeg(sources: Sequence[Image.Image]) -> Iterator[Pair]:
    for source in sources:
        shown = SourceFrame(source, DEFAULT_AREA).shown
        file = io.BytesIO()
        shown.save(file, "jpeg", quality=75)
        yield shown, Image.open(file).convert("RGB")


def pipeline_edit(sources: Sequence[Image.Image]) -> Iterator[Pair]:
    """An edit of a diffusers pipeline, which works at sides cut to multiples of 8."""
    for source in sources:
        edit = _to_cells(source, source.size)
        yield SourceFrame(source, DEFAULT_AREA).fit(edit), scale_image(edit, DEFAULT_AREA, FACTOR)


def mixed_batch(sources: Sequence[Image.Image]) -> Iterator[Pair]:
    """The same in batches of the dataset's order, where all images go to the size of the first."""
    for place, source in enumerate(sources):
        first = sources[place - place % BATCH].size
        frame = SourceFrame(source, DEFAULT_AREA)
        yield frame.fit(_to_cells(source, source.size)), scale_image(_to_cells(source, first), DEFAULT_AREA, FACTOR)


def square(sources: Sequence[Image.Image]) -> Iterator[Pair]:
    """OmniGen, whose square is brought back to the source's shape here."""
    for source in sources:
        edit = source.resize((OMNIGEN_SIDE, OMNIGEN_SIDE), Image.Resampling.BICUBIC)
        back = edit.resize(source.size, Image.Resampling.BICUBIC)
        yield SourceFrame(source, DEFAULT_AREA).fit(back), scale_image(edit, DEFAULT_AREA, FACTOR)


def area(sources: Sequence[Image.Image]) -> Iterator[Pair]:
    for source in sources:
        yield scale_image(source, DEFAULT_AREA, FACTOR), scale_image(source, PUBLISHED_AREA, FACTOR)


CROPPED = (source_cropped, pipeline_edit)
GAPS: dict[str, Callable[[Sequence[Image.Image]], Iterator[Pair]]] = {
    "source not cropped to cells": source_cropped,
    "JPEG of quality 75": jpeg,
    "edit of a diffusers pipeline not cropped": pipeline_edit,
    f"batches of {BATCH} with mixed sizes": mixed_batch,
    "OmniGen's edit shown as a square": square,
    f"image area {PUBLISHED_AREA:,}": area,
}


def gap(name: str, pairs: Iterator[Pair], cropped: bool) -> Gap:
    """Compare each pair. cropped: by what both show, from the upper left corner."""
    n = resized = 0
    area, l1, psnr = [], [], []
    for here, there in pairs:
        n += 1
        resized += here.size != there.size
        area.append(there.width * there.height / (here.width * here.height))
        if cropped:
            common = (0, 0, min(here.width, there.width), min(here.height, there.height))
            here, other = here.crop(common), there.crop(common)
        else:
            other = there if there.size == here.size else there.resize(here.size, Image.Resampling.BICUBIC)
        difference = np.asarray(here, np.float64) - np.asarray(other, np.float64)
        if difference.any():
            l1.append(np.abs(difference).mean())
            psnr.append(10 * np.log10(255**2 / np.square(difference).mean()))
    return Gap(name, n, resized, len(l1), float(np.mean(area)), _mean(l1), _mean(psnr))


def _to_cells(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize((size[0] // 8 * 8, size[1] // 8 * 8), Image.Resampling.LANCZOS)


def _mean(values: Sequence[float]) -> tuple[float, float, float] | None:
    if not values:
        return None
    low, high = mean_interval(np.array(values)) or (float("nan"), float("nan"))
    return float(np.mean(values)), low, high


def main() -> None:
    parser = argparse.ArgumentParser(description="Published ways with an image against ours.", allow_abbrev=False)
    parser.add_argument("data", type=Path, help="the benchmark's Parquet file")
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="aurora", help="its columns (default: aurora)")
    given = parser.parse_args()
    benchmark = BENCHMARKS[given.benchmark]
    samples = Samples(benchmark, find_rows(benchmark, given.data))
    sources = [sample.source for sample in samples]
    blanks = sum(sample.instruction != " ".join(sample.instruction.split()) for sample in samples)
    print(
        f"| published way | other size, of {len(samples)} | pixels there over here | other pixels "
        "| L1, levels of 255 | PSNR, dB |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, ways in GAPS.items():
        found = gap(name, ways(sources), ways in CROPPED)
        cells = (
            "–" if part is None else f"{part[0]:.2f} [{part[1]:.2f}, {part[2]:.2f}]" for part in (found.l1, found.psnr)
        )
        print(f"| {name} | {found.resized} | {found.area:.4f} | {found.differing} | {' | '.join(cells)} |")
    print(f"\ninstructions with other white space than single spaces between words: {blanks} of {len(samples)}")


if __name__ == "__main__":
    run_main(main)
