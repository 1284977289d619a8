"""The configs that ship: every one can start, is the run that its name says, and README tells the truth of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

from emu3.errors import UserError
from rl.check_configs import CONFIGS, check_all, check_config
from rl.config import Config
from rl.config_file import STAND_INS

README = CONFIGS.parent / "README.md"
SIMPLE = {"omniedit": 1.0}
COMPLEX = {"magic_brush": 6.0, "aurora_ag": 6.0, "aurora_kubric": 0.7, "ss2": 1.55, "vismin": 3.7, "human-edit": 11.0}
BOTH = {"omniedit": 0.13} | COMPLEX
S, THINK = "mair-lab/sft-simple", "mair-lab/sft-think-simple"
SC, TWO_STAGE = (
    f"Image-editing/Emu3-Base-SFT-without_cot-{name}"
    for name in ("May06_mixed_gc_lr1e-4-checkpoint-4800", "May07_mixed_gc_post_lr1e-4-checkpoint-1200")
)
RUNS = {
    "sft_s__rl_s": (S, SIMPLE, 1000),
    "sft_s__rl_c": (S, COMPLEX, 1000),
    "sft_s__rl_sc": (S, BOTH, 1000),
    "sft_sc__rl_c": (SC, COMPLEX, 1000),
    "sft_sc__rl_sc": (SC, BOTH, 1000),
    "sft_sc2stage__rl_c": (TWO_STAGE, COMPLEX, 1000),
    "sft_sc2stage__rl_sc": (TWO_STAGE, BOTH, 1000),
    "sft_think_s__rl_s": (THINK, SIMPLE, 2000),
    "sft_think_s__rl_c": (THINK, COMPLEX, 2000),
    "sft_think_s__rl_sc": (THINK, BOTH, 2000),
    "earl": (S, BOTH, 2000),
    "sft_s__rl_sc__judge_7b": (S, BOTH, 1000),
}

# The sizes of the published models.
EMU3 = {
    "architectures": ["Emu3ForCausalLM"],
    "model_type": "Emu3",
    "vocab_size": 184622,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 9216,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
VISION = {
    "model_type": "Emu3VisionVQ",
    "ch": 256,
    "ch_mult": [1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [3],
    "z_channels": 4,
    "embed_dim": 4,
    "codebook_size": 32768,
    "temporal_downsample_factor": 4,
}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STAND_INS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONFIGS, tmp_path / "configs"))


def shipped(name: str) -> Config:
    return check_config(CONFIGS / f"{name}.jsonnet")


def test_the_command_prints_every_run() -> None:
    """Without a variable set, as a person would call it first."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APP__")}
    command = [sys.executable, "-m", "rl.check_configs"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CONFIGS.parents[1])
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["config", "base", "steps", "lr", "kl", "think", "judge", "data"]
    assert {line.split()[0] for line in lines} == {*RUNS, "shapes"}
    assert any(
        re.match(rf"earl +{S} +2000 +3e-06 +0.0003 +- +Qwen\S+ +0.13\*omniedit 6\*magic", line) for line in lines
    )


@pytest.mark.parametrize("name", RUNS)
def test_each_run_is_what_its_name_says(name: str) -> None:
    """Guards a copied file of which one line was not changed: a row of the paper under another row's name."""
    config = shipped(name)
    base, data, steps = RUNS[name]
    assert (config.model, config.steps) == (base, steps)
    assert config.data.coefficients is not None
    folders = [f"DATA_DIR/{part}/train" for part in data]
    assert dict(zip(config.data.sets, config.data.coefficients, strict=True)) == dict(
        zip(folders, data.values(), strict=True)
    )
    thinks = "think" in name
    assert (config.rollout.think_tokens, config.compute.micro_batch) == ((982, 4) if thinks else (0, 8))
    size = "7B" if name.endswith("7b") else "72B"
    assert config.judge.model == f"Qwen/Qwen2.5-VL-{size}-Instruct"
    assert (config.rollout.engine, config.compute.zero, config.compute.precision) == ("vllm", 2, "bf16")


def test_readme_has_the_values_of_the_configs() -> None:
    """Guards the table of published keys, which a change of a config would leave behind."""
    config = shipped("sft_s__rl_sc")
    table = README.read_text().split("## Published keys")[1].split("\n## ")[0]
    cells = [re.split(r"(?<!\\)\|", line)[3] for line in table.splitlines() if line.startswith("| ")][1:]
    told = [part.partition("=") for cell in cells for part in re.findall(r"`([^`]+)`", cell)]
    assert len(told) > 30
    for key, equals, value in told:
        ours = attrgetter(key)(config)
        assert not equals or ours == json.loads(value), key


@pytest.mark.parametrize("name", ["earl", "sft_think_s__rl_sc"])
def test_the_estimate_fits_the_node(tmp_path: Path, name: str) -> None:
    """4 GPUs of 80 GB. Guards a setting that would be found wrong when the node has been waited for."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(EMU3))
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "config.json").write_text(json.dumps(VISION))
    places = [f"model={tmp_path}/model", f"vision={tmp_path}/vision"]
    node = ["--ranks", "4", "--device-memory", "80", "--device", "H100"]
    command = [sys.executable, "-m", "rl.watch.estimate", str(CONFIGS / f"{name}.jsonnet"), *places, *node]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parents[1])
    assert done.returncode == 0, done.stderr
    assert re.search(r"memory per device: .* = 7\d of 80 GB, most in decoding", done.stdout), done.stdout
    assert "keys and values hold" in done.stdout and "some will wait" not in done.stdout, done.stdout
    assert "warning" not in done.stdout, done.stdout


def test_published_is_one_import(tmp_path: Path) -> None:
    text = f"(import '{CONFIGS}/earl.jsonnet') + (import '{CONFIGS}/published.libsonnet')"
    (tmp_path / "old.jsonnet").write_text(text)
    old, new = check_config(tmp_path / "old.jsonnet"), shipped("earl")
    assert (old.objective.preset, old.judge.image_format, old.judge.temperature) == ("paper", "jpeg", None)
    assert (new.objective.preset, new.judge.image_format, new.judge.temperature) == ("corrected", "png", 0.0)
    assert (old.objective.kl, old.judge.model, old.data) == (new.objective.kl, new.judge.model, new.data)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


FAULTS = {
    "stray quote": (").c", ")'.c", "STATIC ERROR"),
    "missing comma": ("data:", "steps: 9 data:", "STATIC ERROR"),
    "key of another program": ("data:", "val_base_dir: 'x', data:", "unknown config key val_base_dir"),
    "misspelt key": ("data:", "stepps: 1, data:", "the nearest known key is steps"),
    "wrong type": ("data:", "steps: '9', data:", "config key steps: expected int, got '9'"),
    "unknown choice": (
        "data:",
        "objective+: { preset: 'ppo' }, data:",
        "config key objective.preset: expected 'corrected' or",
    ),
    "unknown mixture": ("data.libsonnet').c", "data.libsonnet').d", "field does not exist: d"),
    "unknown base": ("sft_s ", "sft_x ", "field does not exist: sft_x"),
    "impossible model": ("data:", "model: 'a b', data:", "config key model: 'a b' is neither a folder nor"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file(configs: Path, fault: str) -> None:
    """The six published files of the headline have the first three."""
    old, new, told = FAULTS[fault]
    edit(configs / "sft_s__rl_c.jsonnet", old, new)
    with pytest.raises(UserError) as caught:
        check_all([configs / "sft_s__rl_c.jsonnet"])
    assert "sft_s__rl_c.jsonnet" in str(caught.value) and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once(configs: Path) -> None:
    """A line per file, and the exit code of a person's mistake."""
    edit(configs / "data.libsonnet", "'ss2', 1.55", "'ss3', 1.55")
    edit(configs / "sft_s__rl_s.jsonnet", "}", "")
    command = [sys.executable, "-m", "rl.check_configs", *map(str, sorted(configs.glob("sft_s__rl_*.jsonnet")))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parents[1])
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [Path(re.findall(r"\S+\.jsonnet", line)[0]).stem for line in lines] == [
        "sft_s__rl_c", "sft_s__rl_s", "sft_s__rl_sc", "sft_s__rl_sc__judge_7b",
    ]  # fmt: skip
    assert all(line.startswith("error: ") for line in lines)
    assert "DATA_DIR/ss3/train is neither a folder nor one of" in lines[0]


def test_data_of_ones_own_passes_where_it_is_there(configs: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    own = configs / "own.jsonnet"
    own.write_text(f"(import 'earl.jsonnet') + {{ data: {{ sets: ['{tmp_path}/photos'] }}, model: '{tmp_path}' }}")
    assert check_config(own).data.sets == (f"{tmp_path}/photos",)
    (tmp_path / "photos").rmdir()
    with pytest.raises(UserError, match="photos is neither a folder nor"):
        check_config(own)
