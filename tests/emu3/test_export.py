"""Folders for the Hub: complete, loadable, and with nothing in the card that strangers should not read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import Emu3ForCausalLM

from emu3.checkpoint_facts import read_facts
from emu3.errors import UserError
from emu3.export import export
from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ

CODES = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an RL run `rl/final`, and the vision tokenizers `vision` and `other`."""
    folder = tmp_path_factory.mktemp("run")
    train_ranks(["make it red"] * 3, 270, folder / "ranks")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks", CODES)
    model = new_language_model(
        tokenizer.layout, hidden_size=32, layers=2, heads=2, kv_heads=1, ffn_size=64, max_positions=96, seed=0
    )
    save_checkpoint(model, tokenizer, folder / "rl/final")
    for name, codes in (("vision", CODES), ("other", 2 * CODES)):
        StillVQ(StillVQConfig(base_channels=32, codebook_size=codes)).save_pretrained(folder / name)
    config = {
        "output_dir": str(folder),
        "model": str(folder / "sft_s/final"),
        "data": {"sets": [str(folder / "tokens/simple"), "mair-lab/earl-datasets"]},
        "judge": {"base_url": "http://user:secret@10.1.2.3/v1", "model": "qwen"},
        "objective": {"preset": "corrected"},
        "steps": 7,
    }
    (folder / "rl/config.json").write_text(json.dumps(config))
    (folder / "table.md").write_text("| model | score |\n|---|---|\n| rl | 4.5 |\n")
    return folder


def test_an_exported_model_is_the_model(run: Path, tmp_path: Path) -> None:
    """In several files with an index, in the asked dtype, with tokenizer and vision tokenizer."""
    folders = export(
        str(run / "rl/final"),
        tmp_path / "earl",
        name="org/earl",
        vision=str(run / "vision"),
        dtype="float32",
        max_shard_size="50KB",
    )
    assert folders == [tmp_path / "earl", tmp_path / "earl-vision"]
    index = json.loads((folders[0] / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    model = Emu3ForCausalLM.from_pretrained(folders[0], local_files_only=True)
    for name, tensor in load_file(run / "rl/final/model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert TextTokenizer.from_pretrained(folders[0]).encode("make it") == TextTokenizer.from_pretrained(
        run / "rl/final"
    ).encode("make it")
    assert StillVQ.from_pretrained(folders[1]).config == StillVQ.from_pretrained(run / "vision").config


def test_the_card_tells_what_the_run_recorded(run: Path, tmp_path: Path) -> None:
    """Data, objective, start and scores; no path of the machine and no address of the judge."""
    folder, _ = export(
        str(run / "rl/final"), tmp_path / "earl", name="org/earl", vision=str(run / "vision"), scores=run / "table.md"
    )
    card = (folder / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["pipeline_tag"] == "image-to-image"
    assert "GRPO with a judge's score, objective `corrected`, 7 steps" in body
    assert "started from: sft_s" in body and "data: simple, mair-lab/earl-datasets" in body
    assert "| rl | 4.5 |" in body and "Its vision tokenizer, org/earl-vision," in body
    assert str(run) not in card and "10.1.2.3" not in card and "secret" not in card


def test_the_card_s_head_is_what_the_hub_reads(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model and the datasets are found through the runs and the tokenized folders behind the checkpoint, as
    ids without revisions, and the license is the base's, with its name and address where it is none of the known."""
    write_run(tmp_path, start="BAAI/Emu3-Gen@main", data="TIGER-Lab/OmniEdit@v1")
    asked = []

    def load(name: str) -> ModelCard:
        asked.append(name)
        return ModelCard("---\nlicense: other\nlicense_name: l\nlicense_link: https://l\n---\n")

    monkeypatch.setattr(ModelCard, "load", load)
    config = json.loads((run / "rl/config.json").read_text()) | {"model": str(tmp_path / "sft_s/final")}
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl/config.json").write_text(json.dumps(config))
    shutil.copytree(run / "rl/final", tmp_path / "rl/final")
    folders = export(str(tmp_path / "rl/final"), tmp_path / "earl", name="org/earl", vision=str(run / "vision"))
    card = ModelCard((folders[0] / "README.md").read_text())
    assert card.data.to_dict() == {
        "base_model": "BAAI/Emu3-Gen",
        "datasets": ["TIGER-Lab/OmniEdit", "mair-lab/earl-datasets"],
        "library_name": "earl",
        "license": "other",
        "license_name": "l",
        "license_link": "https://l",
        "pipeline_tag": "image-to-image",
        "tags": ["image-editing", "autoregressive", "emu3", "grpo"],
    }
    assert asked == ["BAAI/Emu3-Gen"] and "started from: sft_s, first from BAAI/Emu3-Gen" in card.text
    assert "@inproceedings" in card.text and re.search(
        r"Its weights take \S+ GB in bfloat16, \S+ GB in 8bit", card.text
    )
    vision = ModelCard((folders[1] / "README.md").read_text())
    assert vision.data.license == "mit" and "The vision tokenizer of [org/earl]" in vision.text


def write_run(folder: Path, start: str, data: str) -> None:
    """The folder `sft_s` of an SFT run that began with `start`, on a tokenized folder of the dataset `data`."""
    (folder / "tokens").mkdir()
    (folder / "tokens/manifest.json").write_text(json.dumps({"data": {"name": data}}))
    (folder / "sft_s/final").mkdir(parents=True)
    arguments = {"model_name_or_path": start, "train_data": [str(folder / "tokens")]}
    (folder / "sft_s/sft_arguments.json").write_text(json.dumps(arguments))


def test_without_a_run_folder_the_card_says_so(run: Path, tmp_path: Path) -> None:
    """Nothing is made up for a checkpoint that came alone, and a Hub vision tokenizer is only named."""
    [folder] = export(
        str(run / "rl/final"), tmp_path / "earl", name="org/earl", vision="BAAI/Emu3-VisionTokenizer", run=tmp_path
    )
    card = (folder / "README.md").read_text()
    assert "objective: not recorded" in card and "None were recorded" in card
    assert "Its vision tokenizer, BAAI/Emu3-VisionTokenizer," in card


def test_the_cards_commands_run_as_printed(run: Path, tmp_path: Path) -> None:
    """Guards against a card whose own command fails: at another image area than the model was trained at the prompt
    does not fit its positions, and nothing but the card would tell which vision tokenizer it belongs to."""
    export(str(run / "rl/final"), tmp_path / "org/earl", name="org/earl", vision=str(run / "vision"), image_area=576)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    card = (tmp_path / "org/earl/README.md").read_text()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path.cwd()),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for language, start in (("bash", ["bash", "-ec"]), ("python", [sys.executable, "-c"])):
        [block] = re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)
        done = subprocess.run([*start, block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "out.png") as edited:
            assert edited.size == (24, 16)  # 576 pixels, in whole cells
        (tmp_path / "out.png").unlink()


def test_an_exported_checkpoint_says_what_the_run_said(run: Path, tmp_path: Path) -> None:
    """The exported names hold on the Hub, and an export of the export needs no flag."""
    first = export(str(run / "rl/final"), tmp_path / "a", name="org/a", vision=str(run / "vision"), image_area=576)[0]
    facts = read_facts(first)
    assert facts is not None and facts.vision is not None
    assert (facts.image_area, facts.vision.name, len(facts.vision.sha256 or "")) == (576, "org/a-vision", 64)
    assert [origin.name for origin in facts.data] == ["simple", "mair-lab/earl-datasets"]
    folders = export(str(first), tmp_path / "b", name="org/b")
    again = read_facts(folders[0])
    assert again is not None and again.vision is not None
    assert folders == [tmp_path / "b", tmp_path / "b-vision"] and again.image_area == 576
    assert (again.vision.name, again.data) == ("org/b-vision", facts.data)


def test_a_vision_tokenizer_that_nobody_names_is_asked_for(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say which vision tokenizer it belongs to: name it as --vision"):
        export(str(run / "rl/final"), tmp_path / "earl", name="org/earl")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "earl"}, "--name earl is no repository id"),
        ({"max_shard_size": "5"}, "--max-shard-size 5: expected a number"),
        ({"scores": Path("none.md")}, "--scores none.md does not exist"),
        ({"vision": "other"}, "has 32 codes, the text tokenizer 16"),
    ],
)
def test_bad_input_writes_nothing(run: Path, tmp_path: Path, change: dict[str, object], told: str) -> None:
    """A folder that is half exported would be pushed one day."""
    options: dict[str, object] = {"name": "org/earl", "vision": "vision", **change}
    options["vision"] = str(run / str(options["vision"]))
    with pytest.raises(UserError, match=told):
        export(str(run / "rl/final"), tmp_path / "earl", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_was_ended_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two folders, or before the card, the same command was refused: the first one existed."""

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = {"name": "org/earl", "vision": str(run / "vision")}
    for place in ("emu3.mllm.language_model.save_checkpoint", "emu3.model_card.model_card"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, ended)
            export(str(run / "rl/final"), tmp_path / "earl", **options)  # type: ignore[arg-type]
        assert [path.name for path in tmp_path.iterdir()] == ["earl-vision"]
    export(str(run / "rl/final"), tmp_path / "earl", **options)  # type: ignore[arg-type]
    export(str(run / "rl/final"), tmp_path / "other", **options)  # type: ignore[arg-type]
    for name in ("", "-vision"):
        folders = [tmp_path / f"{stem}{name}" for stem in ("earl", "other")]
        files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
        assert files[0] == files[1] and "README.md" in files[0]


def test_an_existing_folder_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "earl-vision").mkdir()
    with pytest.raises(UserError, match="earl-vision exists"):
        export(str(run / "rl/final"), tmp_path / "earl", name="org/earl", vision=str(run / "vision"))
    assert not (tmp_path / "earl").exists()


def test_a_link_to_a_disk_that_is_away_is_left_alone(run: Path, tmp_path: Path) -> None:
    """It was replaced, and the export lay on the disk that it was to spare."""
    (tmp_path / "earl").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="earl exists: choose another"):
        export(str(run / "rl/final"), tmp_path / "earl", name="org/earl", vision=str(run / "vision"))
    assert (tmp_path / "earl").is_symlink()
