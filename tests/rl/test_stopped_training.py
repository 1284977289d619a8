"""RL that is stopped by a signal, started twice, started again on something else, or finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tiny_run import StubScorer, without_times

from emu3.errors import UserError
from emu3.run_folder import owned
from rl import checkpoint
from rl import train as train_module
from rl.reward.scores import Outcome


class Asked(StubScorer):
    """Is asked to end when it gets call `at`. hangs: whether that call never gets its score."""

    def __init__(self, number: int, at: int, hangs: bool = False) -> None:
        super().__init__()
        self._number, self._at, self._hangs = number, at, hangs

    def submit(self, *images: Any, **options: Any) -> Future[Outcome]:
        if self.calls == self._at:
            os.kill(os.getpid(), self._number)
            if self._hangs:
                self.calls += 1
                return Future()
        return super().submit(*images, **options)


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    make_config: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """In the second of three steps of 12 rollouts each: the first one, since the last checkpoint, was lost."""
    undisturbed = run(make_config(steps=3, run_name="undisturbed"))
    with pytest.raises(SystemExit) as ended:
        run(make_config(steps=3), Asked(number, at=15))
    assert ended.value.code == 128 + number
    assert "the state after 1 steps is saved; the same command goes on from there" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]
    assert not (tmp_path / "run" / "final").exists()
    lines = run(make_config(steps=3))
    assert without_times(lines) == without_times(undisturbed)
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")


def test_a_signal_is_seen_while_the_judge_is_waited_for(make_config: Any, run: Any, tmp_path: Path) -> None:
    """Guards a job whose judge has gone, too: it waited for its reply until it was killed."""
    start = time.monotonic()
    with pytest.raises(SystemExit):
        run(make_config(steps=3), Asked(signal.SIGTERM, at=23, hangs=True))
    assert time.monotonic() - start < 30
    assert checkpoint.newest(tmp_path / "run").step == 1  # type: ignore[union-attr]


def test_a_signal_before_the_first_step_leaves_nothing_to_go_on_from(
    make_config: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(make_config(steps=1), Asked(signal.SIGTERM, at=0))
    assert "the state after 0 steps is saved" in capsys.readouterr().out
    assert len(run(make_config(steps=1))) == 1


def test_a_signal_right_after_a_checkpoint_writes_no_second_one(
    make_config: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    begin = checkpoint.Checkpoints.begin
    monkeypatch.setattr(
        checkpoint.Checkpoints, "begin", lambda self, step, *rest: (written.append(step), begin(self, step, *rest))
    )
    with pytest.raises(SystemExit):
        run(make_config(steps=3, save_every=1), Asked(signal.SIGTERM, at=15))
    assert written == [1]


def test_a_folder_in_use_is_refused(make_config: Any, run: Any, tmp_path: Path) -> None:
    """After a launcher was killed with -9, a restart made a second trainer in the folder."""
    with owned(tmp_path / "run"), pytest.raises(UserError, match=r"run is in use by .*process \d+, since "):
        run(make_config())
    assert len(run(make_config())) == 2


@pytest.fixture
def command(make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`command(**changes)` is `python -m rl.train` with a config of the tiny world, as far as to its judge."""

    def start(**changes: Any) -> None:
        monkeypatch.setattr(train_module, "load_config", lambda path, overrides: make_config(**changes))
        monkeypatch.setattr("sys.argv", ["rl.train", "config.jsonnet"])
        train_module.main()

    return start


def test_a_finished_run_does_nothing(
    make_config: Any, run: Any, command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asked its judge, loaded everything and wrote `final` again. With more steps it goes on."""
    run(make_config(steps=1))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    for steps in (1, 0 + 1):
        command(steps=steps)
    assert "run: all 1 steps are done: nothing to do" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before
    with pytest.raises(UserError, match=r"holds a run with optimizer\.lr=0.003, this one has optimizer\.lr=0\.5"):
        command(steps=1, optimizer={"lr": 0.5})
    with pytest.raises(UserError, match="judge"):  # it has work, so it asks for the judge, which is none
        command(steps=2)
    assert len(run(make_config(steps=2))) == 2


def test_a_run_without_its_model_is_not_finished(make_config: Any, run: Any, tmp_path: Path) -> None:
    run(make_config(steps=1))
    shutil.rmtree(tmp_path / "run" / "final")
    assert not checkpoint.is_finished(make_config(steps=1))
    run(make_config(steps=1))
    assert checkpoint.is_finished(make_config(steps=1))


@pytest.mark.parametrize("changed", ["model", "config", "vision", "data", "tokenizer"])
def test_a_run_on_other_inputs_is_refused(
    make_config: Any, run: Any, world: Path, tmp_path: Path, changed: str
) -> None:
    """Guards a resume from a folder that was filled anew under the same name, whose reference is another model."""
    own = tmp_path / "own"
    shutil.copytree(world, own)
    places = {"model": str(own / "model"), "vision": str(own / "vision"), "data": {"sets": [str(own / "data")]}}
    run(make_config(steps=1, **places))
    if changed == "data":
        manifest = json.loads((own / "data" / "manifest.json").read_text())
        (own / "data" / "manifest.json").write_text(json.dumps({**manifest, "note": "made anew"}))
    elif changed == "config":
        config = json.loads((own / "model" / "config.json").read_text())
        (own / "model" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    elif changed == "tokenizer":
        with (own / "model" / "tokenizer.json").open("a") as file:
            file.write("\n")
    else:
        weights = own / changed / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        if changed == "vision":  # and tokenized with it
            note = json.loads((tmp_path / "run" / "config.json").read_text())
            assert len(note["inputs"]["vision"]) == 64
    with pytest.raises(UserError, match=rf"inputs\.{changed}=|vision_sha256"):
        run(make_config(steps=2, **places))


def test_another_judge_is_said(make_config: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is allowed, as the paper's runs did it, but a curve with a step in it wants a reason."""

    class Named(StubScorer):
        judge_name = "first"

    run(make_config(steps=1), Named())
    Named.judge_name = "second"
    run(make_config(steps=2, judge={"base_url": "http://stub/v1", "image_format": "jpeg"}), Named())
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        f'note: {tmp_path / "run"}: inputs.judge.model was "first", now it is "second"',
        f'note: {tmp_path / "run"}: judge.image_format was "png", now it is "jpeg"',
    ]


def test_a_checkpoint_and_a_model_that_were_moved_and_linked(make_config: Any, run: Any, tmp_path: Path) -> None:
    """ "No checkpoint of step 3" was said although it was there, rotation stopped, and later starts were tracebacks."""
    folder, scratch = tmp_path / "run", tmp_path / "scratch"
    run(make_config(steps=2, save_every=1, keep_checkpoints=2))
    scratch.mkdir()
    for name in ("checkpoints/step_000001", "checkpoints/step_000002", "final"):
        shutil.move(folder / name, scratch / Path(name).name)
        (folder / name).symlink_to(scratch / Path(name).name)
    run(make_config(steps=4, save_every=1, keep_checkpoints=2))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_000003", "step_000004"]
    assert sorted(path.name for path in scratch.iterdir()) == ["final", "step_000001", "step_000002"]
    assert (folder / "final" / "model.safetensors").is_file() and not (folder / "final").is_symlink()


def test_the_folder_of_another_commands_training_is_refused(command: Any, tmp_path: Path) -> None:
    """SFT's folder, given to RL under its name, lost its metrics; a finished one was a KeyError."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "run" / "sft_arguments.json").write_text("{}")
    with pytest.raises(UserError, match=r"run holds a training of another command, without config\.json: "):
        command()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
