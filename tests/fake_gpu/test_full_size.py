"""The branches that only a GPU takes, at 8B shapes without one, and the estimate of memory beside what they take."""

from __future__ import annotations

import importlib.util
import re
import shutil
from typing import Any

import pytest
from memory_table import ROOT, page, passes, shards

TABLE = ROOT / "assets" / "memory.md"
TOLERANCE = 0.05
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def traced() -> list[dict[str, Any]]:
    if shutil.which("g++") is None:
        pytest.skip("the stand-in for a GPU is built with g++, which is not here")
    return passes()


@pytest.fixture(scope="module")
def held() -> list[dict[str, Any]]:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    return shards()


def outside(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['name']}: {row['counted'] / row['traced'] - 1:+.1%}"
        for row in rows
        if abs(row["counted"] / row["traced"] - 1) > TOLERANCE
    ]


def test_every_pass_goes_through_and_takes_what_is_counted(traced: list[dict[str, Any]]) -> None:
    """RL's passes, their losses, sampling, decoding and SFT, forward and back. A kernel without a rule for these shapes
    and dtypes raised here; a part of the count that was forgotten showed as 8.2 GB for 5.0. The parts that are left out
    (rotary angles, small vectors) are under 2%."""
    assert len(traced) == 14 and not outside(traced)


def test_passes_take_the_kernels_of_cuda(traced: list[dict[str, Any]]) -> None:
    """Guards the trace itself: on another branch its numbers would mean nothing."""
    for row in traced:
        kernels = set(row["attention"])
        if row["name"].startswith("RL"):
            assert kernels == {"_flash_attention_forward", "_flash_attention_backward"}, row
        elif row["name"].startswith("reference"):
            assert kernels == {"_flash_attention_forward"}, row
        elif row["name"].startswith("SFT"):
            flash = "_scaled_dot_product_flash_attention"
            assert kernels == {flash, f"{flash}_backward"}, row
        elif row["name"].startswith("local"):
            assert "_scaled_dot_product_efficient_attention" in kernels, row


def test_deepspeed_holds_what_is_counted(held: list[dict[str, Any]]) -> None:
    """Partitions, gradients in float32, buckets, and the largest gradient on its way, which DeepSpeed converts whole:
    it was left out, 4.5 GB of the 8B model."""
    assert len(held) == 8 and not outside(held)


def test_the_table_shows_todays_figures(traced: list[dict[str, Any]], held: list[dict[str, Any]]) -> None:
    """A change of a formula or a pass has to write `assets/memory.md` anew (`memory_table.py`)."""
    today, written = rows_of(page(traced, held)), rows_of(TABLE.read_text())
    assert today.keys() == written.keys()
    for name, numbers in today.items():
        # In ZeRO-3 gathering and reducing overlap with work, which moves its peak by 2% between runs.
        assert numbers == pytest.approx(written[name], rel=0.04), name


def rows_of(text: str) -> dict[str, list[float]]:
    """Counted and traced GB by name."""
    found = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|", text, flags=re.MULTILINE)
    return {name: [float(number) for number in numbers] for name, *numbers in found}
