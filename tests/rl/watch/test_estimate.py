"""What is said before a run starts, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from sizes_of_emu3 import emu3, settings
from transformers import Emu3TextConfig

from emu3.errors import UserError, run_main
from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from rl.config import Config
from rl.config_file import load_config
from rl.rollout.engine import Prompt
from rl.watch import estimate as module
from rl.watch.costs import Sizes, forward_operations, sampled_bytes, step_time, trained_operations
from rl.watch.estimate import Device, announce, check, estimate, main

H100 = Device("NVIDIA H100 80GB HBM3", 85e9, 2e12, 4)


def refuse(sizes: Sizes, config: Config, device: Device) -> None:
    """Raises where the run does not fit."""
    compute = dataclasses.replace(config.compute, memory_check="refuse")
    assert check(sizes, dataclasses.replace(config, compute=compute), device) is None


def with_overrides(config: Config, overrides: str, tmp_path: Path) -> Config:
    """`config` after the `key=value` of an error message, through the door that a person would take."""
    path = tmp_path / "config.jsonnet"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    return load_config(path, overrides.split())


def test_the_papers_step_by_hand() -> None:
    """A group of 8 completions forward with its prompt once is 144 TFLOP: 9,580 tokens through 6.98 billion weights,
    7.5 of attention, 8,480 tokens against 32,768 rows. A rank of 4 has 4 groups; three passes, one more for what is
    checkpointed, one of the reference; at 40% of 989 TFLOP/s 7.3 s."""
    config = settings()
    matrices = 2 * 9580 * 6_979_321_856
    attention = 4 * 32 * 4096 * (1100**2 / 2 + 8 * (1060**2 / 2 + 1060 * 1100))
    head = 2 * 8 * 1060 * 4096 * 32768
    assert (
        forward_operations(emu3(), config)
        == pytest.approx(matrices + attention + head)
        == pytest.approx(144e12, rel=0.02)
    )
    assert trained_operations(emu3(), config) == 4 * 5 * forward_operations(emu3(), config)
    # Each of 1,060 tokens reads 14.2 GB of weights and the cache of 4 x (1,100 + 8 x 530) tokens of 131,072 bytes.
    weights, cache = 2 * (6_979_321_856 + 32768 * 4096), 4 * 5340 * 131_072
    assert sampled_bytes(emu3(), config) == pytest.approx(1060 * (weights + cache))
    found = step_time(emu3(), config, H100.name or "")
    assert found is not None
    assert found.training == pytest.approx(7.3, rel=0.02) and found.sampling == pytest.approx(9.0, rel=0.02)


@pytest.mark.parametrize(
    ("name", "changes"), [("Some GPU", {}), ("NVIDIA H100", {"compute": {"precision": "fp32"}}), (None, {})]
)
def test_unknown_is_not_a_number(name: str | None, changes: dict[str, Any]) -> None:
    """A CPU, a GPU of no known kind, arithmetic whose speed is not listed: it says when there will be a number."""
    told = estimate(emu3(), settings(**changes), dataclasses.replace(H100, name=name))
    assert told.seconds is None and told.lines[-1] == "  time per step: measured after the first steps"


def test_the_block_names_every_large_part() -> None:
    lines = estimate(emu3(), settings(compute={"reference": "offloaded"}), H100).lines
    assert lines[0] == "estimate for 4 x NVIDIA H100 80GB HBM3, prompts of 1100 and completions of 1060 tokens"
    assert lines[1].startswith(
        "  memory per device: weights 17.0 + optimizer 25 + image tokenizer 1.1 + activations 1.1 +"
    )
    assert (
        lines[1].endswith(" of 85 GB, most in the reference's pass")
        and lines[2] == "  main memory: a checkpoint's copy 119 + reference 68 = 187 of 2000 GB"
    )
    written_at_once = settings(compute={"reference": "offloaded", "save_in_background": False})
    assert estimate(emu3(), written_at_once, H100).lines[2] == "  main memory: reference 68 of 2000 GB"


@pytest.mark.parametrize(
    ("changes", "ranks", "gigabytes"),
    [
        ({"compute": {"gradient_checkpointing": False}}, 4, 80),
        ({"compute": {"reference": "resident"}}, 4, 80),
        ({"compute": {"zero": 0, "reference": "resident"}}, 4, 80),
        ({"compute": {"zero": 0, "reference": "resident", "gradient_checkpointing": False}}, 8, 80),
        ({"compute": {"reference": "resident", "gradient_checkpointing": False}}, 4, 48),
        ({"compute": {"zero": 0, "reference": "resident", "precision": "fp32"}}, 1, 80),
    ],
)
def test_what_cannot_fit_is_refused_with_settings_that_do(
    changes: dict[str, Any], ranks: int, gigabytes: float, tmp_path: Path
) -> None:
    """Advice that does not parse, or does not help, would cost a person the hours that the refusal saves."""
    config, device = settings(**changes), dataclasses.replace(H100, bytes=gigabytes * 1e9)
    with pytest.raises(UserError, match=rf"GB per device, most in .* there are {gigabytes} GB; it fits with"):
        refuse(emu3(ranks), config, device)
    with pytest.raises(UserError) as refusal:
        refuse(emu3(ranks), config, device)
    for overrides in str(refusal.value).split("it fits with ")[1].split(", or with "):
        changed = with_overrides(config, overrides, tmp_path)
        refuse(emu3(ranks), changed, device)
        assert changed != config


def test_changes_that_only_help_together_are_as_few_as_will_do() -> None:
    """Checkpointing and a smaller batch of prompts come before them in the order of trying, and are not needed."""
    config = settings(compute={"zero": 0, "reference": "offloaded", "gradient_checkpointing": False})
    advice = "it fits with compute.micro_batch=1 compute.zero=2 compute.offload_optimizer=true"
    with pytest.raises(UserError, match=f"{re.escape(advice)}$"):
        refuse(emu3(1), config, dataclasses.replace(H100, bytes=80e9))


def test_what_nothing_helps_says_so() -> None:
    with pytest.raises(UserError, match="more or larger devices are needed"):
        refuse(emu3(1), settings(), dataclasses.replace(H100, bytes=10e9))


def test_main_memory_is_counted_where_things_are_moved_to() -> None:
    """Four quarters of an optimizer with its gradients, 193 GB, beside four references of 17; the machine would swap or
    kill for hours."""
    config = settings(compute={"offload_optimizer": True, "reference": "offloaded", "save_in_background": False})
    with_a_copy = settings(compute={"offload_optimizer": True, "reference": "offloaded"})
    with pytest.raises(UserError, match=r"there are 270 GB; it fits with compute\.save_in_background=false"):
        refuse(emu3(), with_a_copy, dataclasses.replace(H100, machine_bytes=270e9))
    refuse(emu3(), config, dataclasses.replace(H100, machine_bytes=270e9))
    with pytest.raises(
        UserError, match=r"261 GB of main memory, and there are 200 GB; it fits with compute\.reference=sharded"
    ):
        refuse(emu3(), config, dataclasses.replace(H100, machine_bytes=200e9))


def prompt_of(layout: TokenLayout, tokens: int, height: int) -> Prompt:
    grammar = GridGrammar(layout, height, 3, (1, 2, 3))
    return Prompt("", (0,) * tokens, grammar, np.zeros((height, 3), np.uint16), "", None)


def test_a_run_is_announced_with_its_own_lengths_and_warned_of_before_it_loads(
    make_config: Any, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, vision = make_config(rollout={"think_tokens": 5}), StillVQ.from_pretrained(world / "vision")
    prompts = [prompt_of(TokenLayout(14, 16), *sizes) for sizes in ((30, 2), (20, 3))]
    announce(config, Accelerator(cpu=True), vision, prompts)
    told = capsys.readouterr().out
    # Thinking, boi, and the longest block: 3 ids of its size, img, 3 rows of 4, three ends.
    assert "1 x CPU process, prompts of 30 and completions of 25 tokens" in told and "after the first steps" in told
    assert "memory per process" in told and "main memory" not in told
    monkeypatch.setattr(module, "this_device", lambda *_: Device(None, 1e8, 1e8, 1))
    complaint = r"this run needs 0.6 GB per process, .* more or larger devices"
    announce(config, Accelerator(cpu=True), vision, prompts)
    assert re.search(f"^warning: {complaint}", capsys.readouterr().out, flags=re.MULTILINE)
    with pytest.raises(UserError, match=complaint):
        announce(checked(config, "refuse"), Accelerator(cpu=True), vision, prompts)
    capsys.readouterr()
    announce(checked(config, "off"), Accelerator(cpu=True), vision, prompts)
    assert not capsys.readouterr().out


def checked(config: Config, how: Any) -> Config:
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, memory_check=how))


def test_scarce_keys_and_values_are_said_with_the_share_that_holds_them() -> None:
    """vLLM throws completions out and computes them again without a word; a step of the think runs did not fit."""
    thinking = {"engine": "vllm", "think_tokens": 512, "vllm": {"memory_share": 0.3}}
    config = settings(rollout=thinking, compute={"reference": "offloaded"})
    device = dataclasses.replace(H100, bytes=80e9)
    sizes = emu3(completion_tokens=1572)
    [line] = [line for line in estimate(sizes, config, device).lines if "vLLM: " in line]
    assert line == (
        "  vLLM: 5.4 GB of keys and values hold 40,953 tokens, the completions sampled at once take 55,040: some will "
        "wait, or be thrown out and computed again; rollout.vllm.memory_share=0.33 holds them"
    )
    assert check(sizes, config, device) is None
    config = settings(rollout={**thinking, "vllm": {"memory_share": 0.33}}, compute={"reference": "offloaded"})
    assert "some will wait" not in "\n".join(estimate(sizes, config, device).lines)


def test_a_share_without_room_for_one_answer_is_told_before_vllm_does() -> None:
    config = settings(rollout={"engine": "vllm", "vllm": {"memory_share": 0.2}})
    with pytest.raises(UserError, match=r"memory_share=0\.2 leaves vLLM no room .* 0\.28 holds a step's$"):
        refuse(emu3(), config, H100)


@pytest.fixture
def full_size(tmp_path: Path) -> Path:
    """A config of a full-size run whose models are config.json files without weights."""
    Emu3TextConfig().save_pretrained(tmp_path / "lm")
    (tmp_path / "vq").mkdir()
    vision = {"model_type": "still_vq", **dataclasses.asdict(StillVQConfig())}
    (tmp_path / "vq" / "config.json").write_text(json.dumps(vision))
    tree = dataclasses.asdict(settings()) | {"model": str(tmp_path / "lm"), "vision": str(tmp_path / "vq")}
    path = tmp_path / "run.jsonnet"
    path.write_text(json.dumps(tree))
    return path


def test_the_command_needs_only_the_configs(
    full_size: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["estimate", str(full_size), "compute.zero=3", "--ranks", "4", "--device-memory", "80"]
    monkeypatch.setattr(sys, "argv", [*command, "--device", "H100", "rollout.group_size=4"])
    main()
    told = capsys.readouterr().out
    assert "estimate for 4 x H100" in told and "weights 4.2 + optimizer 25" in told and " of 80 GB" in told
    assert "training about" in told and "warning" not in told
    monkeypatch.setattr(sys, "argv", ["estimate", str(full_size), "--device-memory", "40"])
    main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("warning: this run needs")


def test_the_command_ends_with_one_line(
    full_size: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that cannot fit, and a model that is not there, are errors that a person can mend."""
    for more, complaint in (
        (["compute.memory_check=refuse", "--device-memory", "40"], "error: this run needs"),
        (["model=nowhere"], "error: folder nowhere does not exist"),
    ):
        monkeypatch.setattr(sys, "argv", ["estimate", str(full_size), *more])
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(complaint)
