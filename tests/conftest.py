"""A cache for this session, and under pytest-xdist the longest files of tests first: one that began last would keep a
single core busy."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Of what tests unpack nothing is to stay; processes that they start have the folder too.
if "EARL_CACHE" not in os.environ:
    os.environ["EARL_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["EARL_CACHE"], ignore_errors=True)

# A suite in the background of a script was started to ignore SIGINT, one under nohup SIGHUP. Commands of this project
# heed that, and tests of signals would wait for what never comes.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

LONGEST_FIRST = (
    "rl/check_node/test_command.py",
    "emu3/train_image_editing/test_sharded_sft.py",
    "fake_gpu/test_full_size.py",
    "baselines/test_one_command.py",
    "rl/training/test_sharded.py",
    "rl/test_slow_ranks.py",
    "emu3/training/test_ranks.py",
    "rl/test_rl_script.py",
    "emu3/train_image_editing/test_tokenize_script.py",
    "emu3/train_image_editing/test_sft.py",
    "emu3/train_image_editing/test_sft_checkpoints.py",
    "emu3/train_image_editing/test_prepare_data.py",
    "emu3/train_image_editing/test_killed_run.py",
    "emu3/train_image_editing/test_sft_scripts.py",
    "baselines/test_reproduce_tables.py",
    "emu3/test_demo_page.py",
    "emu3/test_launch.py",
    "dev/test_kills.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts in every worker alike; without workers the order is that of the folders."""
    if hasattr(config, "workerinput"):
        place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: place.get(item.path, len(place)))
