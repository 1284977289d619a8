"""Whole runs of the trainer in the tiny world, with a scorer that scores at once."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import run_ranks, without_times

from emu3.checkpoint_facts import model_origin, read_facts, vision_origin
from emu3.errors import UserError, run_main
from emu3.mllm.product import check_product
from emu3.tokenizer.model import StillVQ
from rl.reward.scores import Unavailable, Unparsable
from rl.rollout.engine import LocalEngine
from rl.train import main

GOLDEN = Path(__file__).parents[1] / "golden" / "rl.json"
COMPARED = ("reward", "kl", "entropy", "grad_norm", "loss")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_curves(one: list[dict[str, Any]], other: list[dict[str, Any]], tolerance: float) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for key in COMPARED:
            assert first[key] == pytest.approx(second[key], rel=tolerance, abs=tolerance / 100), (first["step"], key)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("corrected", {"preset": "corrected"}),
        ("corrected, k3 as published", {"preset": "corrected", "kl_gradient": "reference"}),
        ("paper", {"preset": "paper"}),
    ],
)
def test_golden_trajectory(make_config: Any, run: Any, name: str, objective: dict[str, str]) -> None:
    """Guards every number of the step at once: a change that should not move training must not move this.

    The tolerance is 1%. Float32 on another CPU moves log-probabilities by about 1e-6, which matters only where a
    pixel of a decoded image then rounds to its neighbour: that moves a reward by 1/3000 and, advantages being
    divided by a group's std of about 0.1, a gradient by 0.3%. A wrong coefficient, sign or mask moves tens of percent.
    """
    lines = run(make_config(steps=4, objective={**objective, "kl": 0.1}, optimizer={"lr": 1e-2}))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert_same_curves(lines, golden, 1e-2)


def test_resumed_run_equals_an_uninterrupted_one(make_config: Any, run: Any, tmp_path: Path) -> None:
    """Bit for bit, metrics and weights: guards the optimizer's state, the prompt order, the seeds of the samples."""
    config = make_config(steps=5, save_every=3)
    whole = run(dataclasses.replace(config, run_name="whole"))
    run(dataclasses.replace(config, run_name="parts", steps=3))
    resumed = run(dataclasses.replace(config, run_name="parts"))
    assert without_times(resumed) == without_times(whole)
    ours, theirs = weights(tmp_path / "parts" / "final"), weights(tmp_path / "whole" / "final")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("product", "bound"), [("onednn", 1e-5), ("bf16", 0.05)])
def test_a_fast_product_samples_and_trains_alike(
    make_config: Any, run: Any, tmp_path: Path, product: str, bound: float
) -> None:
    """Sampler and trainer have the same product: their log-probabilities differ by rounding alone (nats; a factor that
    sits between two numbers of bfloat16 may fall on either side). A run that goes on is the same bit for bit."""
    try:
        check_product("", product, torch.device("cpu"))  # type: ignore[arg-type]
    except UserError as error:
        pytest.skip(str(error))
    config = make_config(steps=4, save_every=2, optimizer={"lr": 1e-2}, compute={"product": product})
    whole = run(dataclasses.replace(config, run_name="whole"))
    assert max(line["logprob_gap"] for line in whole) < bound
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["corrected"]
    assert whole[0]["entropy"] == pytest.approx(golden[0]["entropy"], rel=min(bound, 1e-3))
    run(dataclasses.replace(config, run_name="parts", steps=2))
    resumed = run(dataclasses.replace(config, run_name="parts"))
    assert without_times(resumed) == without_times(whole)
    ours, theirs = weights(tmp_path / "parts" / "final"), weights(tmp_path / "whole" / "final")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    plain = dataclasses.replace(config, run_name="parts", compute=dataclasses.replace(config.compute, product="plain"))
    with pytest.raises(UserError, match=f'compute.product="{product}", this one has compute.product="plain"'):
        run(plain)


def test_micro_batches_do_not_change_the_run(make_config: Any, run: Any) -> None:
    """1x12 = 12x1, also through the optimizer and the next samples; float32 sums in another order move 1e-6."""
    runs = [run(make_config(run_name=f"m{size}", steps=3, compute={"micro_batch": size})) for size in (1, 5, 12)]
    assert_same_curves(runs[0], runs[2], 1e-4)
    assert_same_curves(runs[1], runs[2], 1e-4)


def test_failed_rollouts_are_masked_and_counted(make_config: Any, run: Any, stub_scorer: Any) -> None:
    """A failure must neither count as 0 nor stop the run while few fail."""
    config = make_config(steps=1, judge={"max_failed_share": 0.2})
    lost = {1: Unavailable("late"), 7: Unparsable("hm")}
    (line,) = run(dataclasses.replace(config, run_name="lost"), stub_scorer(lost))
    (full,) = run(config)
    assert (line["failed"], line["unparsable"], line["unavailable"], full["failed"]) == (2, 1, 1, 0)
    assert line["reward"] == pytest.approx(full["reward"], rel=0.1)
    assert line["grad_norm"] != full["grad_norm"]


def test_a_judge_that_comes_back_costs_nothing(
    make_config: Any, run: Any, stub_scorer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rollouts of the first step fail once: the run saves, waits, asks again for these, and then goes on as if
    nothing had happened."""
    config = make_config(steps=2)
    undisturbed = run(dataclasses.replace(config, run_name="undisturbed"))
    lines = run(config, stub_scorer({call: Unavailable("connection refused") for call in range(12)}))
    assert "paused: the judge at http://stub/v1 gave no score for 12 of 12 rollouts (connection refused)" in (
        capsys.readouterr().out
    )
    assert without_times(lines) == without_times(undisturbed)


def test_a_judge_that_stays_away_ends_the_run_saved(
    make_config: Any, run: Any, stub_scorer: Any, tmp_path: Path
) -> None:
    """The second step's rollouts always fail: the state after the first is on disk, and the run can go on later."""
    config = make_config(steps=2)
    with pytest.raises(UserError, match="the run is saved"):
        run(config, stub_scorer({call: Unavailable("gone") for call in range(12, 999)}))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]
    assert without_times(run(config)) == without_times(run(dataclasses.replace(config, run_name="undisturbed")))


def test_a_refusal_is_not_waited_for(make_config: Any, run: Any, stub_scorer: Any, tmp_path: Path) -> None:
    """A key that does not fit is no outage: pauses would only delay the message. Here there is no limit to pauses."""
    config = make_config(steps=2, judge={"pauses": 10**6, "pause_seconds": 3600.0})
    refusals = stub_scorer({call: Unavailable("HTTP 401: no such key", refused=True) for call in range(12, 999)})
    with pytest.raises(UserError, match=r"12 of 12 rollouts .HTTP 401: no such key.; the run is saved"):
        run(config, refusals)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]


def test_only_what_may_come_back_is_asked_again(
    make_config: Any, run: Any, stub_scorer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two refusals and an outage of the rest: one pause, ten new questions, two rollouts masked."""
    lost = {call: Unavailable("filtered", refused=call < 2) for call in range(12)}
    (line,) = run(make_config(steps=1, judge={"max_failed_share": 0.2}), stub_scorer(lost))
    assert capsys.readouterr().out.count("paused") == 1
    assert (line["failed"], line["unavailable"]) == (2, 2)


def test_step_without_preferences_changes_nothing(
    make_config: Any, run: Any, stub_scorer: Any, tmp_path: Path, world: Path
) -> None:
    """All groups constant: weight decay and Adam's momentum must not move the weights, and the line is still whole."""
    (line,) = run(make_config(steps=1, optimizer={"weight_decay": 0.1}), stub_scorer(constant=5.0))
    assert line["constant_share"] == 1.0 and line["grad_norm"] is None and line["reward"] == 5.0
    before, after = weights(world / "model"), weights(tmp_path / "run" / "final")
    assert all(torch.equal(before[name], after[name]) for name in before)
    for folder in ("final", "checkpoints/step_000001/model"):
        facts = read_facts(tmp_path / "run" / folder)
        assert facts is not None and facts.vision is not None and facts.trained_from is not None
        assert facts.vision == vision_origin(world / "vision"), "the path from either folder leads there"
        assert (facts.objective, facts.steps) == ("grpo: corrected", 1)
        assert (facts.trained_from, [origin.name for origin in facts.data]) == (model_origin(world / "model"), ["data"])


@pytest.mark.parametrize("preset", ["grpo", "dr_grpo", "dapo"])
def test_other_objectives_train(make_config: Any, run: Any, preset: str) -> None:
    """Each goes through the step, and differs from the default in what it divides by or where it clips."""
    objective = {"preset": preset, "kl": 0.1, "updates": 2, "importance_cap": 2.0}
    (line,) = run(make_config(run_name=preset, steps=1, objective=objective, optimizer={"lr": 1e-2}))
    assert line["grad_norm"] > 0 and line["mismatch_kl"] < 1e-6 and 0 <= line["clip_share"] <= 1


def test_further_rounds_replace_groups_that_prefer_nothing(make_config: Any, run: Any, stub_scorer: Any) -> None:
    """The first round's groups are all without scores, hence constant: as many prompts are taken again, and only these
    are trained on; the prompts of the next step are new ones."""
    config = make_config(steps=2, rollout={"rounds": 3}, judge={"max_failed_share": 1.0})
    first, second = run(config, stub_scorer({call: Unavailable("late") for call in range(12)}))
    assert (first["prompts"], first["rollouts"], first["failed"]) == (6, 24, 12)
    assert first["grad_norm"] is not None and first["constant_share"] == 0.5
    assert (second["prompts"], second["rollouts"]) == (3, 12)


def test_rounds_come_to_an_end(make_config: Any, run: Any, stub_scorer: Any) -> None:
    (line,) = run(make_config(steps=1, rollout={"rounds": 3}), stub_scorer(constant=5.0))
    assert (line["prompts"], line["constant_share"], line["grad_norm"]) == (9, 1.0, None)


def test_thinking_and_several_updates_run(make_config: Any, run: Any) -> None:
    """Thinking completions have different lengths; at the second update the ratio is no longer 1."""
    lines = run(make_config(steps=2, rollout={"think_tokens": 6}, objective={"updates": 2}))
    assert lines[0]["logprob_gap"] < 1e-4
    assert lines[0]["answer_tokens"] > 16
    assert 0 < lines[0]["cut_chains"] <= lines[0]["rollouts"]  # of some 270 tokens, one would end a chain earlier


def test_weights_that_were_not_handed_over_are_noticed(
    make_config: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a sampler that goes on with old weights: nothing fails, and the run learns nothing."""

    class StaleEngine(LocalEngine):
        def __init__(self, weights: Any, *others: Any) -> None:
            with weights() as model:
                old = copy.deepcopy(model)
            super().__init__(lambda: nullcontext(old), *others)

    monkeypatch.setattr("rl.rollout.engine.LocalEngine", StaleEngine)
    with pytest.raises(UserError, match="do not hold the same weights"):
        run(make_config(steps=5, optimizer={"lr": 0.1}, compute={"max_logprob_gap": 0.05}))


def test_dead_judge_is_one_line_and_exit_code_2(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded or written."""
    config = make_config(judge={"base_url": "http://127.0.0.1:9/v1", "attempts": 1, "deadline": 2.0})
    path = tmp_path / "config.jsonnet"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    monkeypatch.setattr(sys, "argv", ["rl.train", str(path)])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    message = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert message.startswith("error: ") and "127.0.0.1:9" in message and "\n" not in message
    assert not (tmp_path / "run").exists()


def test_data_of_another_vision_tokenizer_is_refused(make_config: Any, run: Any, world: Path, tmp_path: Path) -> None:
    """Guards a run on codes that decode to other images: everything works, and every reward is noise."""
    shutil.copytree(world / "vision", tmp_path / "vision")
    other = StillVQ.from_pretrained(tmp_path / "vision")
    other.quantizer.codebook.add_(1)
    other.save_pretrained(tmp_path / "vision")
    with pytest.raises(UserError, match="data has vision_sha256"):
        run(make_config(vision=str(tmp_path / "vision")))
    assert not (tmp_path / "run").exists()


def test_two_ranks_equal_one(make_config: Any, run: Any) -> None:
    """Three prompts on two gloo ranks, of which one has two: guards sums that are means, and seeds by rank."""
    config = make_config(run_name="two", steps=2)
    (two,) = run_ranks(2, [config])
    one = run(dataclasses.replace(config, run_name="one"))
    assert_same_curves(two, one, 1e-4)
    assert [line["rollouts"] for line in two] == [12, 12]
