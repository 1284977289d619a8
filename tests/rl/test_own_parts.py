"""A reward, a loss and a wording of somebody's own: the templates of docs/templates, run by `rl.train` itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from aiohttp import web
from safetensors.torch import load_file
from stub_judge import StubJudge

from emu3.checkpoint_facts import read_facts
from emu3.errors import UserError
from emu3.extensions import _load
from rl.train import main

TEMPLATES = Path(__file__).parents[2] / "docs" / "templates"
RunCommand = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def judge() -> Iterator[StubJudge]:
    """Gives an edit scores that its pixels decide, and every image 25 and 25."""
    stub = StubJudge()

    async def reply(body: dict[str, Any]) -> web.StreamResponse:
        text, *images = body["messages"][0]["content"]
        scores = [25, crc32(images[-1]["image_url"]["url"].encode()) % 10] if len(images) == 2 else [25, 25]
        if "0 to 25" not in text["text"]:
            scores = [min(10, score) for score in scores]
        content = f"It is red now.\n{json.dumps({'reasoning': 'as asked', 'score': scores})}"
        message = {"role": "assistant", "content": content}
        return web.json_response({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    stub.reply = reply
    yield stub
    stub.close()


@pytest.fixture
def train(make_config: Any, judge: StubJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """`python -m rl.train CONFIG key=value ...` in this process; returns the lines of its metrics."""

    def start(run_name: str, *overrides: str) -> list[dict[str, Any]]:
        _load.cache_clear()  # each command imports for itself
        config = tmp_path / f"{run_name}.json"
        settings = make_config(run_name=run_name, steps=1, judge={"base_url": judge.url})
        config.write_text(json.dumps(dataclasses.asdict(settings)))
        monkeypatch.setattr(sys, "argv", ["rl.train", str(config), *overrides])
        main()
        lines = (tmp_path / run_name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return start


def test_the_reward_asks_and_scales(train: RunCommand, judge: StubJudge) -> None:
    """Guards a reward of one's own that is loaded and not used, and the scale: 0 to 25 becomes 0 to 10."""
    [line] = train("own", f"reward.own={TEMPLATES / 'reward.py'}:EditScore", "reward.viescore=0")
    texts = texts_of(judge)
    assert all("0 to 25" in text for text in texts)
    assert any("Editing instruction: make it red" in text for text in texts)
    assert line["failed"] == 0 and line["rollouts"] == 12
    assert line["parts"]["pq"] == pytest.approx(10)
    assert line["parts"]["edit_success"] == pytest.approx(10)
    assert 0 < line["parts"]["overedit"] < 9 * 10 / 25


def test_it_is_a_part_of_the_weighted_mean(train: RunCommand) -> None:
    [line] = train("mean", f"reward.own={TEMPLATES / 'reward.py'}:EditScore", "reward.own_weight=3")
    parts = line["parts"]
    expected = (parts["viescore/value"] + 3 * parts["own/value"]) / 4
    assert line["reward"] == pytest.approx(expected)


def test_the_loss_trains(train: RunCommand, tmp_path: Path) -> None:
    """At one update the ratio is 1, and the template's gradient that of `corrected` with k3 as published: one step
    leads to the same weights (float32 sums in another order move 1e-6), by a loss of another value."""
    [theirs] = train("corrected", "objective.kl_gradient=reference")
    [ours] = train("capped", f"objective.own={TEMPLATES / 'objective.py'}:capped")
    assert abs(ours["loss"] - theirs["loss"]) > 1e-3
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("corrected", "capped"))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    facts = read_facts(tmp_path / "capped" / "final")
    assert facts is not None and facts.objective == "grpo: corrected with objective.py:capped"


def test_another_source_is_another_run(train: RunCommand, tmp_path: Path) -> None:
    """The path in the config says little: what the file holds decides."""
    file = tmp_path / "mine.py"
    shutil.copy(TEMPLATES / "objective.py", file)
    train("run", f"objective.own={file}:capped")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(recorded["inputs"]["extensions"]["objective"]) == 64
    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"inputs\.extensions\.objective"):
        train("run", f"objective.own={file}:capped", "steps=2")


def test_the_wording_is_asked(train: RunCommand, judge: StubJudge, tmp_path: Path) -> None:
    train("short", f"judge.prompts={TEMPLATES / 'wording.py'}:SHORT")
    assert all("how far the instruction was carried out" in text or "natural" in text for text in texts_of(judge))
    wording = json.loads((tmp_path / "short" / "config.json").read_text())["inputs"]["judge"]["wording"]
    train("usual")
    assert json.loads((tmp_path / "usual" / "config.json").read_text())["inputs"]["judge"]["wording"] != wording


def texts_of(judge: StubJudge) -> list[str]:
    return [body["messages"][0]["content"][0]["text"] for body in judge.bodies]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.own=capped", r"objective\.own: expected package\.module:name or path/to/file\.py:name"),
        ("reward.own=nowhere.py:Reward", r"reward\.own nowhere\.py:Reward: nowhere\.py does not exist"),
        ("objective.own=no_such_package.loss:mine", r"there is no module no_such_package\.loss"),
        ("objective.own={}/objective.py:caped", r"has no caped; the nearest is capped"),
        ("objective.own={}/reward.py:EditScore", r"expected to call it as \(tokens, totals, objective\)"),
        ("reward.own={}/metric.py:ChangedPixels", r"gives has no judge|its score: expected to call it|its judge"),
        ("judge.prompts={}/wording.py:FORM", r"expected a rl\.reward\.viescore\.EditPrompts, got a str"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(train: RunCommand, tmp_path: Path, override: str, words: str) -> None:
    """Before a model is loaded, and with nothing written."""
    with pytest.raises(UserError, match=words) as error:
        train("wrong", override.format(TEMPLATES))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "wrong").exists()


def test_targets_are_asked_for_where_the_reward_needs_them(make_config: Any, run: Any, tmp_path: Path) -> None:
    """The tiny world has no targets: such a reward finds no prompt, as GroundScore finds none."""
    file = tmp_path / "near.py"
    file.write_text("class Near:\n    needs_target = True\n")
    with pytest.raises(UserError) as ground:
        run(make_config(reward={"groundscore": 1.0}))
    with pytest.raises(UserError) as own:
        run(make_config(reward={"own": f"{file}:Near"}))
    assert str(own.value) == str(ground.value)


def test_nothing_of_a_config_is_run_by_reading_it(make_config: Any, tmp_path: Path) -> None:
    """A config that is read and checked does not import what it names."""
    file = tmp_path / "bad.py"
    file.write_text("raise SystemExit('ran')\n")
    config = make_config(reward={"own": f"{file}:Reward"}, objective={"own": f"{file}:loss"})
    assert config.objective.name == "corrected with bad.py:loss"
