"""Editors that are no diffusion models: our own, best of n, commands, folders; and which options each takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_judge import FakeJudge
from noise_pictures import noise
from PIL import Image, ImageChops
from tiny_emu3 import save_emu3

from baselines.benchmarks.samples import Sample
from baselines.editors.best_of import BestOf, pick
from baselines.editors.choose import choose
from baselines.editors.command import CommandEditor
from baselines.editors.fixed import finished_in
from baselines.editors.options import EditorOptions
from baselines.editors.protocol import Answer, Edited, NoPicture
from emu3.errors import UserError
from emu3.mllm.editor import Edit
from rl.reward.config import JudgeConfig
from rl.reward.scores import Score, Unavailable, Unparsable

AREA = 16 * 16


def sample(id: str, instruction: str = "invert it", picture: Image.Image | None = None) -> Sample:
    return Sample(id, "task", "all", "", instruction, picture or noise(0), None)


def reason(answer: Answer) -> str:
    assert isinstance(answer, NoPicture)
    return answer.reason


class Recorder:
    """Stands in for our own editor: its s-th edit of a picture has the shade s."""

    calls: list[dict[str, Any]]

    def __init__(self) -> None:
        self.calls = []

    def from_pretrained(self, *parts: Any, engine: str) -> Recorder:
        self.parts, self.engine = parts, engine
        return self

    def edit(self, images: list[Image.Image], instructions: list[str], n: int, **settings: Any) -> list[list[Edit]]:
        self.calls.append({"pictures": len(images), "n": n, **settings})
        return [
            [Edit(Image.new("RGB", (16, 16), (shade, 0, 0)), f"thought {shade}") for shade in range(n)] for _ in images
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
    editor = choose("emu3", EditorOptions(**parts(tmp_path), temperature=0.5, top_k=0, think=True), AREA)
    with editor.load() as predict:
        answers = predict([sample("a"), sample("b")], 3)
    assert [answer.reasoning for answer in answers if isinstance(answer, Edited)] == ["thought 0"] * 2
    sampling = {"temperature": 0.5, "top_k": None, "think": True, "image_area": AREA}
    assert ours.calls == [{"pictures": 2, "n": 1, "seed": 3, **sampling}]
    assert [str(part) for part in ours.parts[:3]] == list(parts(tmp_path).values()) and ours.engine == "local"


def test_the_engine_is_chosen_and_told(ours: Recorder, tmp_path: Path) -> None:
    """Guards numbers of one engine that pass for the other's: their arithmetic differs."""
    editor = choose("emu3", EditorOptions(**parts(tmp_path), engine="vllm"), AREA)
    with editor.load() as predict:
        predict([sample("a")], 0)
    assert ours.engine == "vllm" and editor.settings["engine"] == "vllm"
    assert choose("emu3", EditorOptions(**parts(tmp_path)), AREA).settings["engine"] == "local"
    with pytest.raises(UserError, match="editor no-edit does not take --engine"):
        choose("no-edit", EditorOptions(engine="vllm"), AREA)


def test_vllm_edits_as_the_model_does(tmp_path: Path) -> None:
    """Guards the way from the option to real pictures: the greedy edit is the same, whichever engine samples it."""
    pytest.importorskip("vllm")
    pq.write_table(pa.table({"instruction": ["make the sky purple", "remove it"] * 8}), tmp_path / "texts.parquet")
    folder = save_emu3(tmp_path / "texts.parquet", tmp_path)
    weights = {"model": str(folder / "model"), "vision": str(folder / "vision"), "temperature": 0.0}
    pictures = []
    for engine in ("local", "vllm"):
        with choose("emu3", EditorOptions(**weights, engine=engine), 1024).load() as predict:
            [answer] = predict([sample("a", "make the sky purple", noise(0, 32, 32))], 0)
        assert isinstance(answer, Edited)
        pictures.append(answer.image.tobytes())
    assert pictures[0] == pictures[1]


def test_the_settings_of_our_models_tell_their_contents(ours: Recorder, tmp_path: Path) -> None:
    """Guards a number whose weights nobody can name: the published sampling, and a digest of every part."""
    settings = choose("emu3", EditorOptions(**parts(tmp_path)), AREA).settings
    assert (settings["temperature"], settings["top_k"], settings["think"], settings["best_of"]) == (1.0, 2048, False, 1)
    assert len({part["files"] for part in settings["weights"].values()}) == 3
    (tmp_path / "model/w.safetensors").write_bytes(b"other weights")
    other = choose("emu3", EditorOptions(**parts(tmp_path)), AREA).settings
    changed = {part for part in settings["weights"] if settings["weights"][part] != other["weights"][part]}
    assert changed == {"model"}


def test_best_of_asks_the_judge_and_says_so(ours: Recorder, tmp_path: Path, judge: FakeJudge) -> None:
    options = EditorOptions(**parts(tmp_path), best_of=3, judge=JudgeConfig(judge.url, "fake"))
    editor = choose("emu3", options, AREA)
    assert editor.settings["picked_by"] == "fake" and len(editor.settings["prompts"]) == 64
    assert "picked_with" not in editor.settings  # as in runs from before it could be set
    warm = EditorOptions(**parts(tmp_path), best_of=3, judge=JudgeConfig(judge.url, "fake", temperature=0.7))
    assert choose("emu3", warm, AREA).settings["picked_with"] == {"temperature": 0.7}
    with editor.load() as predict:
        [answer] = predict([sample("a")], 0)
    assert isinstance(answer, Edited) and answer.candidates == (9.0, 9.0, 9.0)
    assert ours.calls[0]["n"] == 3 and judge.questions == 6
    judge.answers["invert it"] = None
    with editor.load() as predict:
        assert "the judge scored not all of 3 edits: HTTP 400" in reason(predict([sample("a")], 0)[0])


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
    answer = pick(CANDIDATES, outcomes)
    assert isinstance(answer, Edited)
    assert (answer.reasoning, answer.candidates) == (f"thought {shade}", scores)


def test_without_a_score_nothing_is_picked() -> None:
    """Guards against a best of four that passes for a best of five, and against a random pick."""
    assert "holds a score" in reason(pick(CANDIDATES, [Unparsable("?")] * 3))
    assert "asleep" in reason(pick(CANDIDATES, [Score(9, {}), Unavailable("asleep"), Score(1, {})]))


def test_the_judge_sees_the_source_at_the_size_of_the_edit() -> None:
    seen: list[tuple[int, int]] = []

    def submit(instruction: str, source: Image.Image, edited: Image.Image) -> Any:
        seen.append(source.size)
        return SimpleNamespace(result=lambda: Score(1, {}))

    editor = SimpleNamespace(image_area=AREA, candidates=lambda *_: [CANDIDATES])
    scorer: Any = SimpleNamespace(submit=submit)
    BestOf(editor, 3, scorer).edit([noise(0, 64, 64)], ["more"], 0)
    assert seen == [(16, 16)] * 3


INVERT = """
import sys
from PIL import Image, ImageChops
source, text, target, seed = sys.argv[1:]
open("{log}", "a").write(text + " " + seed + "\\n")
ImageChops.invert(Image.open(source)).save(target)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """The command that runs a Python program on source, instruction, target and seed."""

    def make(text: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(text)
        return f"{sys.executable} {file} {{input}} '{{instruction}}' {{output}} {{seed}}"

    return make


def test_a_command_edits(program: Callable[[str], str], tmp_path: Path) -> None:
    """Guards the argument against the shell and against marks inside an instruction."""
    log = tmp_path / "log"
    editor = CommandEditor(program(INVERT.replace("{log}", str(log))), 60)
    hostile = f"'; touch {tmp_path}/owned; {{output}} $HOME"
    answers = editor.edit([noise(1), noise(2)], [hostile, "b"], seed=5)
    for seed, answer in zip((1, 2), answers, strict=True):
        assert isinstance(answer, Edited) and answer.image.tobytes() == ImageChops.invert(noise(seed)).tobytes()
    assert log.read_text() == f"{hostile} 5\nb 6\n"
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; print('so be it'); sys.exit('no such layer')", "ended with exit code 1: no such layer"),
        ("", "its output does not exist"),
        ("import sys; open(sys.argv[3], 'w').write('x')", "its output cannot be read as an image"),
    ],
)
def test_a_command_that_fails_is_a_failure_of_its_sample(
    program: Callable[[str], str], text: str, message: str
) -> None:
    [answer] = CommandEditor(program(text), 60).edit([noise(0)], ["a"], 0)
    assert message in reason(answer) and "\n" not in reason(answer)


def test_a_command_that_hangs_is_ended_with_its_children(program: Callable[[str], str], tmp_path: Path) -> None:
    """Guards a GPU that an abandoned child would keep."""
    beat = tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'a').write('.'); time.sleep(0.01)"
    text = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    text += f"while not __import__('os').path.exists({str(beat)!r}): time.sleep(0.01)\ntime.sleep(600)"
    [answer] = CommandEditor(program(text), 2).edit([noise(0)], ["a"], 0)
    assert "did not end within 2 s" in reason(answer)
    size = beat.stat().st_size if beat.exists() else 0
    time.sleep(0.2)
    assert (beat.stat().st_size if beat.exists() else 0) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edit {input} {output}", "has no place for {instruction}"),
        ("edit '{input} {output} {instruction}", "cannot be split"),
    ],
)
def test_a_command_without_its_marks(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CommandEditor(text, 1)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(UserError, match="the command /no/such cannot be started"):
        CommandEditor("/no/such {input} {output} {instruction}", 1).edit([noise(0)], ["a"], 0)


def test_a_command_is_run_once_per_batch() -> None:
    """Guards what a long program has finished: it is kept picture by picture."""
    options = EditorOptions(command="edit {input} {output} {instruction}")
    assert choose("command", options, AREA).batch_size == 1


def test_finished_pictures_by_id(tmp_path: Path) -> None:
    """Guards the pairing, and files outside of the folder: ids are what a data set says they are."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    noise(1).save(folder / "a.png")
    noise(2).save(folder / "sub" / "b.png")
    noise(3).save(tmp_path / "secret.png")
    (folder / "broken.png").write_bytes(b"x")
    answers = finished_in(folder)([sample(id) for id in ("sub/b", "a", "../secret", "none", "broken")], 0)
    assert [answer.image.tobytes() for answer in answers[:2] if isinstance(answer, Edited)] == [
        noise(2).tobytes(),
        noise(1).tobytes(),
    ]
    assert all("has no picture" in reason(answer) for answer in answers[2:4])
    assert "broken.png cannot be read as an image" in reason(answers[4])
    with pytest.raises(UserError, match="does not exist"):
        finished_in(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("no-edit", {"think": True}, "editor no-edit does not take --think"),
        ("aurora", {"top_k": 0}, "editor aurora does not take --top-k"),
        ("aurora", {"judge": JudgeConfig("u")}, "editor aurora does not take --judge-"),
        ("emu3", {"model": "m", "best_of": 5}, "--best-of needs a judge that picks"),
        ("emu3", {"model": "m", "best_of": 5, "judge": JudgeConfig("", "m")}, "--best-of needs a judge that picks"),
        ("emu3", {"model": "m", "judge": JudgeConfig("", prompts="c")}, "a judge picks among several edits"),
        ("emu3", {"model": "m", "judge": JudgeConfig("u")}, "a judge picks among several edits"),
        ("emu3", {"model": "m", "temperature": -1.0}, "temperature and top-k are 0 or more"),
        ("command", {}, "editor command needs --command"),
        ("folder", {}, "editor folder needs --pictures"),
        ("painter", {}, "no editor 'painter'; there are emu3, instruct-pix2pix"),
    ],
)
def test_options_that_an_editor_does_not_take(kind: str, options: dict[str, Any], message: str) -> None:
    """Guards a setting that is ignored in silence, and so a number that is not what its command says."""
    with pytest.raises(UserError, match=message):
        choose(kind, EditorOptions(**options), AREA)
