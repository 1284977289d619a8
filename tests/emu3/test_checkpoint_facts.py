"""`earl.json`: with it `--model` alone is enough, and a wrong pairing of two tokenizers is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from emu3.checkpoint_facts import (
    FACTS_FILE,
    CheckpointFacts,
    Origin,
    model_origin,
    read_facts,
    setup_of,
    short_name,
    trained_facts,
    vision_origin,
    write_facts,
)
from emu3.errors import UserError
from emu3.files import write_json
from emu3.mllm.editor import Editor
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest

AREA = 576


@pytest.fixture
def tree(tmp_path: Path, tiny_model_folder: Path, tiny_vision_folder: Path) -> Path:
    """A run: `sft/final`, which says that it belongs to `vision`."""
    shutil.copytree(tiny_model_folder, tmp_path / "run/sft/final")
    shutil.copytree(tiny_vision_folder, tmp_path / "run/vision")
    final, vision = tmp_path / "run/sft/final", tmp_path / "run/vision"
    write_facts(final, CheckpointFacts(image_area=AREA, vision=vision_origin(vision), objective="sft", steps=3))
    return tmp_path / "run"


def other_weights(vision: Path) -> None:
    torch.manual_seed(1)
    config = StillVQ.from_pretrained(vision).config
    shutil.rmtree(vision)
    StillVQ(config).save_pretrained(vision)


def test_the_model_alone_is_enough(tree: Path) -> None:
    """The same edit as with everything named by hand."""
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    alone = Editor.from_pretrained(tree / "sft/final").edit(image, "a")
    named = Editor.from_pretrained(tree / "sft/final", tree / "vision", image_area=AREA).edit([image], ["a"])
    assert alone[0].image.tobytes() == named[0][0].image.tobytes()
    assert alone[0].image.size == (24, 16)


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    facts = CheckpointFacts(
        image_area=9,
        vision=Origin("a/b", "0" * 64),
        trained_from=Origin("c", None),
        data=(Origin("d", "1" * 64), Origin("e", "2" * 64)),
        objective="grpo: corrected",
        steps=7,
    )
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts
    assert json.loads((tmp_path / FACTS_FILE).read_text())["version"] == 1
    assert {"earl-image-editing", "torch"} <= facts.versions.keys()


def test_a_run_that_is_moved_as_a_whole_still_finds_its_vision_tokenizer(tree: Path, tmp_path: Path) -> None:
    """No absolute path is written where both lie in one tree: runs are moved, and their files read by others."""
    assert str(tmp_path) not in (tree / "sft/final" / FACTS_FILE).read_text()
    moved = tree.rename(tmp_path / "moved")
    assert setup_of(moved / "sft/final").vision == str(moved / "vision")


def test_a_vision_tokenizer_beside_the_checkpoint_is_found(tree: Path, tmp_path: Path) -> None:
    """Guards what people do: copy the model and its vision tokenizer into a folder of models."""
    (tmp_path / "models").mkdir()
    model, vision = tmp_path / "models/mine", tmp_path / "models/vision"
    shutil.move(tree / "sft/final", model)
    with pytest.raises(
        UserError, match=r"the vision tokenizer of .*mine \(SHA-256 .*\) was at .*: name it as --vision"
    ):
        setup_of(model)
    shutil.move(tree / "vision", vision)
    assert setup_of(model).vision == str(vision)
    other_weights(vision)
    with pytest.raises(UserError, match="name it as --vision"):
        setup_of(model)


def test_other_weights_in_its_place_are_refused(tree: Path) -> None:
    """Guards against codes that mean other images: nothing but the digest would show it."""
    other_weights(tree / "vision")
    with pytest.raises(UserError, match="now holds other weights: name the right one as --vision"):
        Editor.from_pretrained(tree / "sft/final")


def test_what_is_named_by_hand_overrides_and_is_said(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tree / "other"
    shutil.copytree(tree / "vision", other)
    assert setup_of(tree / "sft/final", other, AREA).vision == str(other)
    assert capsys.readouterr().err == ""
    other_weights(other)
    setup_of(tree / "sft/final", other, 1024)
    setup = setup_of(tree / "sft/final", other, 1024)  # says it no second time
    assert (setup.vision, setup.image_area) == (str(other), 1024)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and all(note.startswith("note: ") for note in notes)
    assert "its codes may mean other images" in notes[0]
    assert f"1024 pixels, but {tree / 'sft/final'} was trained at {AREA}" in notes[1]


def test_checkpoints_of_others_need_what_they_needed(tiny_model_folder: Path, tiny_vision_folder: Path) -> None:
    assert read_facts(tiny_model_folder) is None
    setup = setup_of(tiny_model_folder, tiny_vision_folder)
    assert (setup.vision, setup.image_area) == (str(tiny_vision_folder), 65536)
    with pytest.raises(UserError, match="holds no vision tokenizer: name one as `vision`"):
        Editor.from_pretrained(tiny_model_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "one"},
        {"image_area": "large"},
        {"image_area": 0},
        {"vision": "folder"},
        {"vision": {"name": "a", "path": "b"}},
        {"vision": {"name": 3, "sha256": None}},
        {"data": [{"name": "a", "sha256": 4}]},
        {"data": {"a": 1}},
        {"data": None},
        {"versions": 3},
    ],
)
def test_a_file_of_another_form_is_one_line(tree: Path, change: dict[str, object]) -> None:
    path = tree / "sft/final" / FACTS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"earl\.json is not what this command writes") as error:
        read_facts(tree / "sft/final")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", "{}", "null"])
def test_a_file_that_is_no_object_is_one_line(tree: Path, content: str) -> None:
    (tree / "sft/final" / FACTS_FILE).write_text(content)
    with pytest.raises(UserError, match=r"earl\.json is not what this command writes"):
        read_facts(tree / "sft/final")


def test_a_later_version_is_refused(tree: Path) -> None:
    """A field that this program does not know may change what the others mean."""
    path = tree / "sft/final" / FACTS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(UserError, match="has format 2, this version of the project reads up to 1: update it"):
        read_facts(tree / "sft/final")


def test_no_path_of_a_downloaded_checkpoint_is_followed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Guards the reader's disk: a stranger's file must not choose which of its folders is opened."""
    folder = tree / "sft/final"
    write_facts(folder, CheckpointFacts(vision=Origin(str(tree / "vision"), weights_digest(tree / "vision"))))
    monkeypatch.setattr("emu3.checkpoint_facts.local_folder", lambda name, allow=None: folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not there: name it as --vision"):
        setup_of("org/name")


def test_training_says_where_its_codes_are_from(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the model it starts with, or else from the datasets; where the two differ a line says so."""
    vision, final, tokens = tree / "vision", tree / "sft/final", tree / "tokens/simple"
    tokens.mkdir(parents=True)
    manifest = {"image_area": AREA, "vision_sha256": weights_digest(vision), "vision": "../../vision"}
    write_json(tokens / "manifest.json", manifest)
    facts = trained_facts(final, [tokens], "sft")
    assert (facts.vision, facts.image_area, facts.objective) == (vision_origin(vision), AREA, "sft")
    assert facts.trained_from == model_origin(final) and facts.data[0].name == "simple"
    (final / FACTS_FILE).unlink()
    assert trained_facts(final, [tokens], "sft").vision == vision_origin(vision)
    assert capsys.readouterr().err == ""
    write_facts(final, CheckpointFacts(image_area=64, vision=Origin("org/other", "0" * 64)))
    assert trained_facts(final, [tokens], "sft").vision == vision_origin(vision)
    notes = capsys.readouterr().err.splitlines()
    assert [note.startswith("note: ") for note in notes] == [True, True]
    assert "its codes may mean other images" in notes[0] and "was trained at 64" in notes[1]


def test_names_say_most_of_a_path_and_no_more(tree: Path) -> None:
    assert short_name(str(tree / "sft/final")) == "sft"
    assert short_name(str(tree / "vision")) == "vision"
    assert short_name("org/name@main") == "org/name@main"
    origin = model_origin(tree / "sft/final")
    assert (origin.name, len(origin.sha256 or "")) == ("sft", 64)
