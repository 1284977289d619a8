"""Our own models as editors: sampling, engines, what the settings tell, best of n."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_judge import FakeJudge
from noise_images import noise
from PIL import Image
from tiny_emu3 import save_emu3

from baselines.editors.editing import ChosenEditor, Edited, EditorOptions, EditResult, NoImage
from baselines.editors.emu3_editor import Emu3Editor, pick
from baselines.evaluate import choose_editor
from emu3.checkpoint_facts import CheckpointFacts, Origin, write_facts
from emu3.errors import UserError
from emu3.mllm.editor import EditedImage
from rl.reward.config import JudgeConfig
from rl.reward.scores import Score, Unavailable, Unparsable

AREA = 16 * 16


def edit(chosen: ChosenEditor, instructions: Sequence[str], seed: int = 0, image: Image.Image | None = None) -> Any:
    """The results of one image with each of the instructions, in one batch."""
    with chosen.load() as editor:
        assert not callable(editor)
        return editor.edit([image or noise(0)] * len(instructions), instructions, seed)


def reason(result: EditResult) -> str:
    assert isinstance(result, NoImage)
    return result.reason


class Recorder:
    """Stands in for our own editor: its s-th edit of an image has the shade s."""

    calls: list[dict[str, Any]]

    def __init__(self) -> None:
        self.calls = []

    def from_pretrained(self, *parts: Any, engine: str, quantization: str | None) -> Recorder:
        self.parts, self.engine, self.quantization = parts, engine, quantization
        return self

    def edit(
        self, images: list[Image.Image], instructions: list[str], n: int, **settings: Any
    ) -> list[list[EditedImage]]:
        self.calls.append({"images": len(images), "n": n, **settings})
        return [
            [EditedImage(Image.new("RGB", (16, 16), (shade, 0, 0)), f"thought {shade}") for shade in range(n)]
            for _ in images
        ]


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr("emu3.mllm.editor.Editor", recorder)
    for part in ("model", "vision", "tokenizer"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(part)
    (tmp_path / "model/w.safetensors").write_bytes(b"weights")
    return recorder


def parts(tmp_path: Path) -> dict[str, str]:
    return {part: str(tmp_path / part) for part in ("model", "vision", "tokenizer")}


def test_our_models_get_whole_batches_and_keep_their_reasoning(ours: Recorder, tmp_path: Path) -> None:
    """Guards speed (one call per batch), the sampling settings, and the chain of thought."""
    editor = choose_editor("emu3", EditorOptions(**parts(tmp_path), temperature=0.5, top_k=0, think=True), AREA)
    results = edit(editor, ["invert it"] * 2, seed=3)
    assert [result.reasoning for result in results if isinstance(result, Edited)] == ["thought 0"] * 2
    sampling = {"temperature": 0.5, "top_k": None, "think": True, "think_tokens": 3000, "image_area": AREA}
    assert ours.calls == [{"images": 2, "n": 1, "seed": 3, **sampling}]
    assert [str(part) for part in ours.parts[:3]] == list(parts(tmp_path).values()) and ours.engine == "local"


def test_how_long_a_chain_may_be_is_told(ours: Recorder, tmp_path: Path) -> None:
    """Guards numbers of short chains that pass for those of long ones, and settings of runs without a chain."""
    options = EditorOptions(**parts(tmp_path), mixed=True, think_tokens=40)
    editor = choose_editor("emu3", options, AREA)
    edit(editor, ["invert it"])
    assert (ours.calls[0]["think"], ours.calls[0]["think_tokens"]) == ("mixed", 40)
    assert (editor.settings["mixed"], editor.settings["think_tokens"]) == (True, 40)
    assert editor.name.endswith(" mixed")
    assert "think_tokens" not in choose_editor("emu3", EditorOptions(**parts(tmp_path)), AREA).settings
    for wrong in ({"think_tokens": 5}, {"think": True, "think_tokens": 0}, {"think": True, "mixed": True}):
        with pytest.raises(UserError, match="--think"):
            choose_editor("emu3", EditorOptions(**parts(tmp_path), **wrong), AREA)


def test_quantization_is_passed_on_and_told(ours: Recorder, tmp_path: Path) -> None:
    """Guards numbers of quantized weights that pass for those of whole ones."""
    editor = choose_editor("emu3", EditorOptions(**parts(tmp_path), quantization="4bit"), AREA)
    with editor.load():
        assert ours.quantization == "4bit" and editor.settings["quantization"] == "4bit"
    whole = choose_editor("emu3", EditorOptions(**parts(tmp_path)), AREA)
    assert "quantization" not in whole.settings and editor.name == f"{whole.name} 4bit"


def test_the_engine_is_chosen_and_told(ours: Recorder, tmp_path: Path) -> None:
    """Guards numbers of one engine that pass for the other's: their arithmetic differs."""
    editor = choose_editor("emu3", EditorOptions(**parts(tmp_path), engine="vllm"), AREA)
    edit(editor, ["invert it"])
    assert ours.engine == "vllm" and editor.settings["engine"] == "vllm"
    assert choose_editor("emu3", EditorOptions(**parts(tmp_path)), AREA).settings["engine"] == "local"
    with pytest.raises(UserError, match="editor no-edit does not take --engine"):
        choose_editor("no-edit", EditorOptions(engine="vllm"), AREA)


def test_vllm_edits_as_the_model_does(tmp_path: Path) -> None:
    """Guards the way from the option to real images: the greedy edit is the same, whichever engine samples it."""
    pytest.importorskip("vllm")
    pq.write_table(pa.table({"instruction": ["make the sky purple", "remove it"] * 8}), tmp_path / "texts.parquet")
    folder = save_emu3(tmp_path / "texts.parquet", tmp_path)
    weights = {"model": str(folder / "model"), "vision": str(folder / "vision"), "temperature": 0.0}
    images = []
    for engine in ("local", "vllm"):
        chosen = choose_editor("emu3", EditorOptions(**weights, engine=engine), 1024)
        [result] = edit(chosen, ["make the sky purple"], image=noise(0, 32, 32))
        assert isinstance(result, Edited)
        images.append(result.image.tobytes())
    assert images[0] == images[1]


def test_the_settings_of_our_models_tell_their_contents(ours: Recorder, tmp_path: Path) -> None:
    """Guards a number whose weights nobody can name: the published sampling, and a digest of every part."""
    settings = choose_editor("emu3", EditorOptions(**parts(tmp_path)), AREA).settings
    assert (settings["temperature"], settings["top_k"], settings["think"], settings["best_of"]) == (1.0, 2048, False, 1)
    assert len({part["files"] for part in settings["weights"].values()}) == 3
    (tmp_path / "model/w.safetensors").write_bytes(b"other weights")
    other = choose_editor("emu3", EditorOptions(**parts(tmp_path)), AREA).settings
    changed = {part for part in settings["weights"] if settings["weights"][part] != other["weights"][part]}
    assert changed == {"model"}


def test_best_of_asks_the_judge_and_says_so(ours: Recorder, tmp_path: Path, judge: FakeJudge) -> None:
    options = EditorOptions(**parts(tmp_path), best_of=3, judge=JudgeConfig(judge.url, "fake"))
    editor = choose_editor("emu3", options, AREA)
    assert editor.settings["picked_by"] == "fake" and len(editor.settings["prompts"]) == 64
    assert "picked_with" not in editor.settings  # as in runs from before it could be set
    warm = EditorOptions(**parts(tmp_path), best_of=3, judge=JudgeConfig(judge.url, "fake", temperature=0.7))
    assert choose_editor("emu3", warm, AREA).settings["picked_with"] == {"temperature": 0.7}
    [result] = edit(editor, ["invert it"])
    assert isinstance(result, Edited) and result.candidates == (9.0, 9.0, 9.0)
    assert ours.calls[0]["n"] == 3 and judge.questions == 6
    judge.answers["invert it"] = None
    assert "the judge scored not all of 3 edits: HTTP 400" in reason(edit(editor, ["invert it"])[0])


CANDIDATES = [Edited(Image.new("RGB", (8, 8), (shade, 0, 0)), f"thought {shade}") for shade in range(3)]


@pytest.mark.parametrize(
    ("outcomes", "shade", "scores"),
    [
        ([Score(1, {}), Score(7, {}), Score(3, {})], 1, (1, 7, 3)),
        ([Score(7, {}), Score(2, {}), Score(7, {})], 0, (7, 2, 7)),
        ([Unparsable("?"), Score(0, {}), Unparsable("?")], 1, (None, 0, None)),
    ],
)
def test_the_highest_score_wins(outcomes: list[Any], shade: int, scores: tuple[Any, ...]) -> None:
    """Guards the pick: the first of equals, and an edit without a score never."""
    result = pick(CANDIDATES, outcomes)
    assert isinstance(result, Edited)
    assert (result.reasoning, result.candidates) == (f"thought {shade}", scores)


def test_without_a_score_nothing_is_picked() -> None:
    """Guards against a best of four that passes for a best of five, and against a random pick."""
    assert "holds a score" in reason(pick(CANDIDATES, [Unparsable("?")] * 3))
    assert "asleep" in reason(pick(CANDIDATES, [Score(9, {}), Unavailable("asleep"), Score(1, {})]))


def test_the_judge_sees_the_source_at_the_size_of_the_edit() -> None:
    seen: list[tuple[int, int]] = []

    def submit(instruction: str, source: Image.Image, edited: Image.Image) -> Any:
        seen.append(source.size)
        return SimpleNamespace(result=lambda: Score(1, {}))

    model: Any = SimpleNamespace(edit=lambda *_, **__: [[EditedImage(one.image, one.reasoning) for one in CANDIDATES]])
    settings: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": None,
        "think": False,
        "think_tokens": 1,
        "image_area": AREA,
    }
    scorer: Any = SimpleNamespace(submit=submit)
    Emu3Editor(model, **settings, best_of=3, scorer=scorer).edit([noise(0, 64, 64)], ["more"], 0)
    assert seen == [(16, 16)] * 3


def test_our_checkpoints_need_no_more_than_their_name(ours: Recorder, tmp_path: Path) -> None:
    """Guards the fingerprint: a vision tokenizer that the checkpoint names counts as one that is named by hand."""
    write_facts(tmp_path / "model", CheckpointFacts(image_area=AREA, vision=Origin(str(tmp_path / "vision"), None)))
    named = choose_editor("emu3", EditorOptions(**parts(tmp_path)), AREA)
    alone = choose_editor(
        "emu3", EditorOptions(model=str(tmp_path / "model"), tokenizer=str(tmp_path / "tokenizer")), AREA
    )
    assert alone.settings == named.settings
    edit(alone, ["invert it"])
    assert ours.parts[1] == str(tmp_path / "vision")
