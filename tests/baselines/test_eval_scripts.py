"""The shell entry points, run with a Python that only notes how it was called; then the flags, parsed for real."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from baselines import evaluate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A checkout with the scripts and, in its .venv, a Python that writes its arguments, one per line, to `calls`."""
    for folder in ("scripts", "baselines/scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" end-of-call >> {tmp_path}/calls\n')
    python.chmod(0o755)
    return tmp_path / "calls"


def run(calls: Path, script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """The calls of `python -m baselines.evaluate` that a script makes."""
    environment = os.environ | {"GPUS": "0"} | variables
    subprocess.run(["bash", calls.parent / script, *arguments], env=environment, check=True, cwd=calls.parent)
    return [call.strip("\n").split("\n") for call in calls.read_text().split("end-of-call\n")[:-1]]


def options(call: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `baselines.evaluate` makes of a call."""
    assert call[:2] == ["-m", "baselines.evaluate"]
    seen: dict[str, object] = {}
    monkeypatch.setattr(evaluate, "run", lambda **given: seen.update(given))
    monkeypatch.setattr("sys.argv", call[1:])
    evaluate.main()
    return seen


def test_batch_eval(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the published variables: the revision goes with the model, each sample has a seed and a folder."""
    made = run(
        calls, "scripts/batch_eval.sh", "--id-key", "omni_edit_id", MODEL_PATH="org/model", HF_REVISION="ckpt_1",
        VALPATH="TIGER-Lab/OmniEdit-Filtered-1.2M", SPLIT="dev", MODE="CE", K_SAMPLE="2", VAL_SIZE="7", BS="3",
        TOKENIZER_PATH="BAAI/Emu3-Gen", SAVE_DIR="out",
    )  # fmt: skip
    first, second = (options(call, monkeypatch) for call in made)
    assert (first["seed"], second["seed"]) == (42, 43)
    assert (first["output_dir"], second["output_dir"]) == (Path("out/sample-42"), Path("out/sample-43"))
    assert (first["data"], first["split"]) == ("TIGER-Lab/OmniEdit-Filtered-1.2M", "dev")
    assert (first["limit"], first["batch_size"]) == (7, 3)
    editor = first["options"]
    assert isinstance(editor, evaluate.EditorOptions)
    assert (editor.model, editor.tokenizer, editor.think) == ("org/model@ckpt_1", "BAAI/Emu3-Gen", True)
    assert editor.vision == "BAAI/Emu3-VisionTokenizer"
    benchmark = first["benchmark"]
    assert isinstance(benchmark, evaluate.Benchmark)
    assert (benchmark.source, benchmark.target, benchmark.task) == ("src_img", "edited_img", "task")
    assert benchmark.id == "omni_edit_id"


def test_without_variables_the_published_models_are_run(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the published calls, which set nothing, and the text tokenizer that SFT checkpoints lack."""
    [quick] = run(calls, "scripts/batch_eval.sh")
    seen = options(quick, monkeypatch)
    assert (seen["data"], seen["split"], seen["limit"]) == ("TIGER-Lab/OmniEdit-Filtered-1.2M", "dev", 700)
    earl = "mair-lab/earl-sft-simple.rl-simple-n-complex-scaled"
    assert [getattr(seen["options"], name) for name in ("model", "tokenizer")] == [earl, "BAAI/Emu3-Gen"]
    made = run(calls, "baselines/scripts/our_eval.sh", BENCHMARKS="aurora", USE_REVISION="False", REVISION="v1")[1:]
    for call, model in zip(made, ("mair-lab/sft-simple.rl-simple-n-complex", earl), strict=True):
        editor = options(call, monkeypatch)["options"]
        assert [getattr(editor, name) for name in ("model", "tokenizer")] == [model, "BAAI/Emu3-Gen"]
    [own] = run(calls, "scripts/batch_eval.sh", MODEL_PATH="org/own", VALPATH="data")[3:]
    seen = options(own, monkeypatch)
    assert (seen["split"], getattr(seen["options"], "tokenizer")) == (None, None)  # noqa: B009


def test_the_published_modes(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards NEW_TOKENS, which bounds a chain of thought where there may be one, and IMAGE_AREA."""
    for mode in ("E", "CE", "mixed"):
        run(calls, "scripts/batch_eval.sh", MODE=mode, NEW_TOKENS="11000", IMAGE_AREA="65636")
        run(calls, "baselines/scripts/our_eval.sh", MODE=mode, MODEL_PATHS="a", BENCHMARKS="aurora")
    made = [call.strip("\n").split("\n") for call in calls.read_text().split("end-of-call\n")[:-1]]
    seen = [options(call, monkeypatch) for call in made]
    assert [one["image_area"] for one in seen[::2]] == [65636] * 3
    found = [tuple(getattr(one["options"], name) for name in ("think", "mixed", "think_tokens")) for one in seen]
    assert found[::2] == [(False, False, None), (True, False, 11000), (False, True, 11000)]
    assert found[1::2] == [(False, False, None), (True, False, None), (False, True, None)]


def test_our_eval_runs_every_model_on_every_benchmark(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(
        calls, "baselines/scripts/our_eval.sh", MODEL_PATHS="org/a org/b", REVISION="main v1", MODE="E",
        BATCH_SIZE="9", SAVE_DIR="out", DATA_DIR="data", VISION_PATH="",
    )  # fmt: skip
    seen = [options(call, monkeypatch) for call in made]
    models = [one["options"].model for one in seen if isinstance(one["options"], evaluate.EditorOptions)]
    assert models == ["org/a@main"] * 6 + ["org/b@v1"] * 6
    names = [one["benchmark"].name for one in seen if isinstance(one["benchmark"], evaluate.Benchmark)]
    assert sorted(names[:6]) == ["aurora", "emuedit", "i2ebench", "magicbrush", "omniedit", "vismin"]
    assert all(one["by_name"] and one["output_dir"] == Path("out") and one["batch_size"] == 9 for one in seen)
    assert {getattr(one["options"], "vision") for one in seen} == {None}  # noqa: B009


def test_a_checkpoint_that_names_its_vision_tokenizer_is_given_no_other(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards our own checkpoints against the published tokenizer, whose codes are other images to them."""
    (calls.parent / "ours").mkdir()
    (calls.parent / "ours/earl.json").write_text("{}")
    made = run(calls, "baselines/scripts/our_eval.sh", MODEL_PATHS="ours org/theirs", BENCHMARKS="gedit")
    made += run(calls, "scripts/batch_eval.sh", MODEL_PATH="ours", VALPATH="data")[2:]
    visions = [getattr(options(call, monkeypatch)["options"], "vision") for call in made]  # noqa: B009
    assert visions == [None, "BAAI/Emu3-VisionTokenizer", None]


def test_baseline_eval_knows_the_published_names(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(calls, "baselines/scripts/baseline_eval.sh", BENCHMARKS="gedit", SAVE_DIR="out")
    seen = [options(call, monkeypatch) for call in made]
    assert [(one["editor"], one["name"]) for one in seen] == [
        ("instruct-pix2pix", "InstructPix2Pix"),
        ("magicbrush", "MagicBrush"),
        ("aurora", "Aurora"),
        ("omnigen", "Omnigen"),
    ]


def test_several_gpus_are_used(calls: Path) -> None:
    [call] = run(calls, "baselines/scripts/baseline_eval.sh", BENCHMARKS="gedit", BASELINE="Aurora", GPUS="4")
    assert call[:5] == ["-m", "emu3.launch", "--ranks", "4", "baselines.evaluate"]


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("scripts/batch_eval.sh", {"MODEL_PATH": "m", "VALPATH": "v", "MODE": "X"}, "MODE is E, CE or mixed, not X"),
        ("baselines/scripts/our_eval.sh", {"MODEL_PATHS": "a b c", "REVISION": "1 2"}, "3 MODEL_PATHS and 2 REVISION"),
        ("baselines/scripts/baseline_eval.sh", {"BASELINE": "Painter"}, "not Painter"),
        ("scripts/batch_eval.sh", {"SOURCE": "local"}, "SOURCE is local, but there is no TIGER-Lab/OmniEdit"),
        ("scripts/batch_eval.sh", {"SOURCE": "disk"}, "SOURCE is HF or local, not disk"),
        (
            "scripts/batch_eval.sh",
            {"MODEL_LOCATION": "local"},
            "MODEL_LOCATION is local, but there is no mair-lab/earl",
        ),
        ("baselines/scripts/our_eval.sh", {"REASONING_INPUT": "True"}, "REASONING_INPUT is not offered"),
    ],
)
def test_wrong_variables_are_named(calls: Path, script: str, variables: dict[str, str], message: str) -> None:
    ended = subprocess.run(
        ["bash", calls.parent / script], env=os.environ | {"GPUS": "0"} | variables, capture_output=True, text=True
    )
    assert ended.returncode != 0 and message in ended.stderr and not calls.exists()
