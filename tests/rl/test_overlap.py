"""Work that goes on beside other work: the reference beside the judge, a step ahead, checkpoints beside training."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tiny_run import StubScorer, run_ranks, without_times

from emu3.errors import UserError
from rl import checkpoint
from rl.reward.scores import Outcome
from rl.update import PolicyUpdate

AHEAD = {"rollout": {"ahead": 1}, "objective": {"importance_cap": 2.0}}
STEP = 12  # rollouts of a step


class WaitsFor(StubScorer):
    """Has its scores once `event` is set; how often it was asked before is in `asked`."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def submit(self, *images: Any, **options: Any) -> Future[Outcome]:
        score, future = super().submit(*images, **options).result(), Future[Outcome]()
        threading.Thread(target=lambda: (self._event.wait(60), future.set_result(score)), daemon=True).start()
        return future


class Asked(StubScorer):
    """Is asked to end when it gets call `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def submit(self, *images: Any, **options: Any) -> Future[Outcome]:
        if self.calls == self._at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().submit(*images, **options)


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def test_the_reference_reads_while_the_judge_works(make_config: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rollouts of a rank end in one pass of the sampler, so nothing of the judge's time was used. Here the judge
    does not answer before the reference has read."""
    read = threading.Event()
    logprobs = PolicyUpdate.reference_logprobs

    def then_set(self: PolicyUpdate, *rows: Any) -> Any:
        found = logprobs(self, *rows)
        read.set()
        return found

    monkeypatch.setattr(PolicyUpdate, "reference_logprobs", then_set)
    assert len(run(make_config(steps=1), WaitsFor(read))) == 1
    assert read.is_set()


def test_the_next_step_is_sampled_before_this_one_is_judged(make_config: Any, run: Any) -> None:
    """And of the last step there is no next one."""
    second = threading.Event()

    class Scorer(WaitsFor):
        def submit(self, *images: Any, **options: Any) -> Future[Outcome]:
            if self.calls >= STEP:
                second.set()
            return super().submit(*images, **options)

    scorer = Scorer(second)
    lines = run(make_config(steps=3, **AHEAD), scorer)
    assert scorer.calls == 3 * STEP and [line["rollouts"] for line in lines] == [STEP] * 3
    # Rounding apart, step 0 is on policy; the later ones are from weights that are an update older.
    gaps = [line["logprob_gap"] for line in lines]
    assert gaps[0] < 1e-5 and min(gaps[1:]) > 1e-4


@pytest.mark.parametrize("at", [0, STEP + 3, 2 * STEP + 3, 3 * STEP + 3])
@pytest.mark.parametrize("save_every", [1, 100])
def test_a_run_ahead_goes_on_as_if_it_had_not_stopped(
    make_config: Any, run: Any, tmp_path: Path, at: int, save_every: int
) -> None:
    """The weights that sampled for the next step are gone at its checkpoint: what they sampled is kept there."""
    changes = {"steps": 4, "save_every": save_every, **AHEAD}
    undisturbed = run(make_config(run_name="undisturbed", **changes))
    with pytest.raises(SystemExit):
        run(make_config(**changes), Asked(at))
    lines = run(make_config(**changes))
    assert without_times(lines) == without_times(undisturbed)
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")


def test_two_ranks_ahead_equal_one(make_config: Any, run: Any, tmp_path: Path) -> None:
    """One of them begins on what the other number of ranks has left."""
    alone = run(make_config(run_name="alone", steps=4, **AHEAD))
    first = make_config(run_name="two", steps=4, save_every=2, keep_checkpoints=9, **AHEAD)
    (two,) = run_ranks(2, [first])
    for line, expected in zip(two, alone, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-7)
        assert line["reward"] == pytest.approx(expected["reward"], rel=1e-6)
    for gone in ("checkpoints/step_000004", "final", "finished.json"):
        path = tmp_path / "two" / gone
        path.rename(tmp_path / path.name)
    again = run(first)
    assert [line["step"] for line in again] == [0, 1, 2, 3]
    assert again[3]["loss"] == pytest.approx(alone[3]["loss"], rel=1e-4, abs=1e-7)


def test_an_older_policy_needs_its_weights(make_config: Any) -> None:
    with pytest.raises(UserError, match=r"rollout\.ahead=1 .*give objective\.importance_cap"):
        make_config(rollout={"ahead": 1})
    with pytest.raises(UserError, match=r"rollout\.rounds above 1"):
        make_config(rollout={"ahead": 1, "rounds": 2}, objective={"importance_cap": 2.0})


def test_training_goes_on_while_a_checkpoint_is_written(
    make_config: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is written once the second step has been sampled, and holds the state after the first."""
    undisturbed = run(make_config(steps=3, save_every=1, keep_checkpoints=9, run_name="undisturbed"))
    sampled = threading.Event()
    write, order = checkpoint.save_checkpoint, []

    def late(*arguments: Any, **options: Any) -> None:
        assert sampled.wait(60)
        order.append("written")
        write(*arguments, **options)

    class Scorer(StubScorer):
        def submit(self, *images: Any, **options: Any) -> Future[Outcome]:
            if self.calls == STEP:
                order.append("sampled")
                sampled.set()
            return super().submit(*images, **options)

    monkeypatch.setattr(checkpoint, "save_checkpoint", late)
    lines = run(make_config(steps=3, save_every=1, keep_checkpoints=9), Scorer())
    assert order[:2] == ["sampled", "written"]
    assert without_times(lines) == without_times(undisturbed)
    for step in (1, 2, 3):
        notes = [tmp_path / name / f"checkpoints/step_{step:06d}/manifest.json" for name in ("run", "undisturbed")]
        assert notes[0].read_bytes() == notes[1].read_bytes()
    assert "checkpoint" in lines[1]["seconds"]


def test_without_a_copy_training_waits_and_the_files_are_the_same(make_config: Any, run: Any, tmp_path: Path) -> None:
    at_once = {"compute": {"save_in_background": False}}
    for name, changes in (("copied", {}), ("at once", at_once)):
        run(make_config(run_name=name, steps=2, save_every=1, keep_checkpoints=9, **changes))
    for step in (1, 2):
        notes = [tmp_path / name / f"checkpoints/step_{step:06d}/manifest.json" for name in ("copied", "at once")]
        assert notes[0].read_bytes() == notes[1].read_bytes()


def test_an_error_that_is_no_disks_is_not_passed_over(
    make_config: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in a thread is a line on standard error that nobody reads, unless it is raised."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint, "save_checkpoint", broken)
    with pytest.raises(ZeroDivisionError):
        run(make_config(steps=2, save_every=1))
