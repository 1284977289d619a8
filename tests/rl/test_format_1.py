"""What commit 8c7db50 left on disk goes on: its shards, runs, predictions, replies and annotations.

`format_1.zip` was written by that commit's own commands in a folder with the names of `world`: a dataset of four pairs
of 8x12 pixels, SFT killed after step 2 of 4, RL after step 1, an evaluation with its scores, an annotation of two rows
of which the second has still to be done. Nothing of it says a format.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_run import StubScorer
from transformers import TrainingArguments

from baselines import evaluate, score
from baselines.benchmarks.spec import BENCHMARKS, GENERIC
from emu3.errors import UserError
from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from emu3.train_image_editing import sft
from emu3.train_image_editing.prepare_data import PrepareArguments, prepare
from emu3.train_image_editing.shards import read_rows
from rl.config_file import build_config
from rl.train import train

ARCHIVE = Path(__file__).with_name("format_1.zip")
INSTRUCTIONS = ["make it red", "remove the ball", "two balls, please"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, with the models that its runs began with, as the working directory."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    world = tmp_path / "world"
    train_ranks(INSTRUCTIONS * 3, 270, tmp_path / "ranks")
    tokenizer = TextTokenizer.from_rank_file(tmp_path / "ranks", 16)
    sizes: dict[str, Any] = {"layers": 1, "kv_heads": 1, "max_positions": 96, "rope_theta": 100.0, "seed": 0}
    for name, width, heads in (("model", 8, 2), ("small", 4, 1)):
        model = new_language_model(tokenizer.layout, hidden_size=width, heads=heads, ffn_size=width, **sizes)
        save_checkpoint(model, tokenizer, world / name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = StillVQConfig(
            base_channels=32, channel_multiplier=(1,), num_res_blocks=1, attn_resolutions=(), codebook_size=16,
            temporal_downsample_factor=1, patch_size=4, norm="position", middle_attention=False,
        )  # fmt: skip
        StillVQ(vision).save_pretrained(world / "vision")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_shards_are_read_and_a_folder_goes_on(old: Path) -> None:
    assert "version" not in json.loads((old / "world/data/manifest.json").read_text())
    assert len(read_rows(Path("world/data"))) == 4
    (old / "world/data/manifest.json").unlink()
    shard = old / "world/data/shard-00000-of-00001.parquet"
    before = shard.read_bytes()
    arguments = PrepareArguments(
        dataset_name="world/pairs.parquet", source="local", output_path="world/data", model_path="world/vision",
        image_area=96, edited_image_key="edited_image", cot_keys=["instruction"],
    )  # fmt: skip
    manifest = prepare(arguments)
    assert manifest is not None and (manifest["version"], manifest["rows"]) == (2, 4)
    assert shard.read_bytes() == before


OLD = {"kl_gradient": "reference", "min_known": 2, "min_std": 0.0}
"""The objective of that commit in the words of this one."""


def rl_config(**changes: Any) -> Any:
    return build_config(
        {
            "run_name": "rl", "output_dir": ".", "model": "world/model", "vision": "world/vision",
            "data": {"sets": ["world/data"]}, "judge": {"base_url": "http://stub/v1"}, "steps": 2, "save_every": 1,
            "rollout": {"prompts_per_step": 2, "group_size": 4}, "objective": {"kl": 0.01, **OLD},
            "optimizer": {"lr": 3e-3},
            "lora": {"rank": 1, "alpha": 1.0}, "compute": {"micro_batch": 5}, **changes,
        }
    )  # fmt: skip


def test_rl_goes_on(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoint's manifest is the digests alone, its config.json has no inputs and lacks later keys."""
    config = rl_config()
    train(config, Accelerator(cpu=True), ImageCodec(StillVQ.from_pretrained(config.vision)), StubScorer())  # type: ignore[arg-type]
    assert "rl: step 1 of 2" in capsys.readouterr().out
    lines = [json.loads(line) for line in (old / "rl/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    note = json.loads((old / "rl/config.json").read_text())
    assert note["version"] == 2 and len(note["inputs"]["model"]) == 64
    write_old(old / "rl/config.json")
    with pytest.raises(UserError, match=r'objective.kl_gradient="reference", this one has objective.kl_gradient=null'):
        config = rl_config(objective={"kl": 0.01})
        train(config, Accelerator(cpu=True), ImageCodec(StillVQ.from_pretrained(config.vision)), StubScorer())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds a run with seed=0, this one has seed=1"):
        config = rl_config(seed=1)
        train(config, Accelerator(cpu=True), ImageCodec(StillVQ.from_pretrained(config.vision)), StubScorer())  # type: ignore[arg-type]


def write_old(path: Path) -> None:
    """The file as it was in the archive."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        path.write_bytes(archive.read("rl/config.json"))


def test_sft_goes_on(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoint's note has sizes where there are digests now; its settings have no length of the schedule."""
    training = TrainingArguments(
        output_dir="sft", max_steps=4, save_steps=2, per_device_train_batch_size=2, use_cpu=True, learning_rate=1e-3,
        logging_steps=1, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    sft.train(sft.SftArguments("world/small", ["world/data"]), training)
    assert "continuing from sft/checkpoint-2" in capsys.readouterr().out
    steps = [json.loads(line).get("step") for line in (old / "sft/metrics.jsonl").read_text().splitlines()]
    assert [step for step in steps if step][:4] == [1, 2, 3, 4]
    settings = json.loads((old / "sft/sft_arguments.json").read_text())
    assert settings["version"] == 2 and settings["schedule_length"]["max_steps"] == 4
    assert (old / "sft/final/model.safetensors").is_file()


def test_an_evaluation_of_the_first_rows_is_refused_and_its_scores_are_kept(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--limit` drew no rows then, it took the first: one folder would hold both. Nothing is made or asked again."""
    benchmark = dataclasses.replace(
        BENCHMARKS[GENERIC.name], source="source_image", instruction="instruction", target="edited_image"
    )
    with pytest.raises(UserError, match=r'limit=2, this one has limit="2 by seed 42": choose another folder'):
        evaluate.run(
            benchmark=benchmark, editor="no-edit", name=None, data="world/pairs.parquet", output_dir=Path("eval"),
            limit=2, image_area=96,
        )  # fmt: skip
    before = (old / "eval/scores.parquet").read_bytes()
    score.run(Path("eval"), metrics=["l1"])
    assert (old / "eval/scores.parquet").stat().st_size >= len(before) - 200
    replies = (old / "eval/answers.jsonl").read_text().splitlines()
    assert len(replies) == 4
