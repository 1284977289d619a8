"""Configs: what a person gets wrong must be named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from emu3.checkpoint_facts import CheckpointFacts, Origin, write_facts
from emu3.errors import UserError
from rl.config_file import load_config, record_config

CONFIGS = Path(__file__).parents[2] / "rl" / "configs"
MINIMAL = """{ run_name: 'r', output_dir: 'o', model: 'm', vision: 'v', data: { sets: ['d'] },
  judge: { base_url: 'http://h/v1' }, optimizer: { lr: 1e-4 } }"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.jsonnet"
    path.write_text(MINIMAL)
    return path


def test_defaults_and_overrides(minimal: Path) -> None:
    config = load_config(minimal, ["optimizer.lr=1", "run_name=12b", 'data.sets=["a","b"]', "rollout.group_size=4"])
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)
    assert config.run_name == "12b"
    assert config.data.sets == ("a", "b")
    assert config.rollout.group_size == 4 and config.rollout.prompts_per_step == 16


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimiser.lr=1", ["optimiser", "optimizer"]),
        ("optimizer.learning_rate=1", ["optimizer.learning_rate", "nearest"]),
        ("rollout.goup_size=4", ["rollout.goup_size", "rollout.group_size"]),
        ("steps=ten", ["steps", "int", "'ten'"]),
        ("steps=1.5", ["steps", "int", "1.5"]),
        ("steps=true", ["steps", "int", "True"]),
        ("optimizer.lr=fast", ["optimizer.lr", "float"]),
        ("objective.preset=ppo", ["objective.preset", "'corrected' or 'paper' or 'grpo'", "'ppo'"]),
        ("data.sets=[1]", ["data.sets[0]", "str"]),
        ("judge=7", ["judge"]),
        ("rollout.group_size=1", ["rollout.group_size", "at least 2"]),
        ("objective.min_known=1", ["objective.min_known", "at least 2"]),
        ("objective.min_known=99", ["objective.min_known", "rollout.group_size"]),
        ("objective.min_std=-1", ["objective.min_std", "at least 0"]),
        ("seed=-1", ["seed", "at least 0"]),
        ("judge.pauses=-1", ["judge.pauses", "at least 0"]),
        ("optimizer.lr=0", ["optimizer.lr", "more than 0"]),
        ("watch.tracker=wandb", ["watch.tracker", "not installed"]),
        ("optimizer.lr=NaN", ["optimizer.lr", "more than 0"]),
        ("data.coefficients=[1, 2]", ["coefficients", "2", "1"]),
        ("steps", ["steps", "key=value"]),
        ("steps.more=1", ["steps", "no keys"]),
    ],
)
def test_wrong_key_type_or_value_is_named(minimal: Path, override: str, words: list[str]) -> None:
    """Guards runs that start with a default because a key was misspelt, hours before anybody sees it."""
    with pytest.raises(UserError) as error:
        load_config(minimal, ["steps=3", override] if override == "steps.more=1" else [override])
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_a_config_in_another_encoding_is_one_line(minimal: Path) -> None:
    """jsonnet quotes the place of an error, in bytes that are no text: a traceback."""
    minimal.write_bytes(MINIMAL.encode() + b"@\xe9")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        load_config(minimal)


def test_importance_weights_and_the_published_objective(minimal: Path) -> None:
    """`paper` scores forced tokens, to which the sampler gave no probability: the weight was that of the whole text
    vocabulary."""
    with pytest.raises(UserError, match="importance_cap does not go with"):
        load_config(minimal, ["objective.preset=paper", "objective.importance_cap=2"])


@pytest.mark.parametrize(
    ("override", "written"),
    [
        ("steps=1e3", "steps=1000"),
        ("tokenizer=None", "tokenizer=null"),
        ("tokenizer=", "tokenizer=null"),
        ("reward.expected=yes", "reward.expected=true"),
        ("compute.offload_optimizer=False", "compute.offload_optimizer=false"),
        ("rollout.vllm.sleep=0", "rollout.vllm.sleep=false"),
        ("data.sets=a", 'data.sets=["a"]'),
        ("steps=many", "steps=1000"),
    ],
)
def test_an_error_shows_how_to_write_the_value(minimal: Path, override: str, written: str) -> None:
    """`tokenizer=None` looked for a folder called None, `steps=1e3` was refused without a word on how to write it."""
    with pytest.raises(UserError) as refused:
        load_config(minimal, [override])
    assert f"write {written}" in str(refused.value), refused.value


def test_the_home_folder_in_paths(tmp_path: Path) -> None:
    """`output_dir=~/runs` made a folder called `~`."""
    path = tmp_path / "home.jsonnet"
    text = MINIMAL.replace("output_dir: 'o'", "output_dir: '~/runs'").replace("['d']", "['~/d', 'e~']")
    path.write_text(text.replace("'http://h/v1'", "'http://h/v1', cache: '~/c'"))
    config = load_config(path, ["model=~/m"])
    home = str(Path.home())
    assert (config.output_dir, config.model, config.judge.cache) == (f"{home}/runs", f"{home}/m", f"{home}/c")
    assert config.data.sets == (f"{home}/d", "e~")


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "/tmp/x"])
def test_a_run_lies_in_its_output_folder(minimal: Path, name: str) -> None:
    with pytest.raises(UserError, match="config key run_name: expected a folder inside output_dir"):
        load_config(minimal, [f'run_name="{name}"'])


def test_a_key_under_its_older_name(minimal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of before go on, with a line; both names at once are a contradiction."""
    assert load_config(minimal, ["watch.pictures_every=7"]).watch.images_every == 7
    assert capsys.readouterr().err == "note: config key watch.pictures_every is now called watch.images_every\n"
    with pytest.raises(UserError, match=r"watch\.pictures_every is the older name of watch\.images_every"):
        load_config(minimal, ["watch.pictures_every=7", "watch.images_every=7"])


def test_missing_file_key_and_broken_jsonnet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.jsonnet")
    for name, text, word in [
        ("missing", "{ run_name: 'r' }", "output_dir is missing"),
        ("syntax", "{ run_name: ' }", "syntax.jsonnet"),
        ("list", "[1]", "object"),
        ("environment", "{ run_name: std.extVar('APP__NOT_SET') }", "APP__NOT_SET"),
    ]:
        path = tmp_path / f"{name}.jsonnet"
        path.write_text(text)
        with pytest.raises(UserError, match=word) as error:
            load_config(path)
        assert "\n" not in str(error.value)


def test_the_vision_tokenizer_is_the_one_that_the_model_names(minimal: Path, tmp_path: Path) -> None:
    """A checkpoint of this project needs no second key; one of somebody else does."""
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="config key vision is missing"):
        load_config(minimal, [f"model={tmp_path / 'model'}", "vision=null"])
    write_facts(tmp_path / "model", CheckpointFacts(vision=Origin("org/vision", "0" * 64)))
    assert load_config(minimal, [f"model={tmp_path / 'model'}", "vision=null"]).vision == "org/vision"
    assert load_config(minimal, [f"model={tmp_path / 'model'}", "vision=mine"]).vision == "mine"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.jsonnet")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the published configs of the paper's main rows parses as jsonnet."""
    for name in ("DATA_DIR", "BASE_EXP_DIR", "REWARD_FUNCTION_API_BASE", "RUN_NAME"):
        monkeypatch.setenv(f"APP__{name}", f"value-of-{name}")
    load_config(path)


def test_environment_reaches_the_paper_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"DATA_DIR": "/d", "BASE_EXP_DIR": "/e", "REWARD_FUNCTION_API_BASE": "http://j:4877/v1", "RUN_NAME": "n"}
    for name, value in values.items():
        monkeypatch.setenv(f"APP__{name}", value)
    config = load_config(CONFIGS / "sft_s__rl_sc.jsonnet")
    assert (config.run_name, config.output_dir, config.judge.base_url) == ("n", "/e", "http://j:4877/v1")
    assert all(folder.startswith("/d/") for folder in config.data.sets)
    assert (config.objective.kl, config.optimizer.lr) == (3e-4, 3e-6)
    assert (config.rollout.prompts_per_step, config.rollout.group_size) == (16, 8)


def test_a_run_is_not_continued_as_another_one(make_config: Any, tmp_path: Path) -> None:
    """Guards a resume under other hyper-parameters, whose curve nobody could interpret; more steps are fine."""
    config = make_config()
    path = tmp_path / "config.json"
    record_config(config, path, resuming=False)
    record_config(dataclasses.replace(config, steps=99), path, resuming=True)
    with pytest.raises(UserError, match="optimizer"):
        record_config(make_config(optimizer={"lr": 1.0}), path, resuming=True)
