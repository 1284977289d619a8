"""Settings: configs of RL and of the vision tokenizer are taken whole, or refused with the key that is wrong."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from mutations import ANY_JSON, broken_json, damaged, with_another_value

from emu3.checkpoint_facts import FACTS_FILE, VERSION, CheckpointFacts, Origin, read_facts, setup_of
from emu3.errors import UserError
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from rl.config import Config
from rl.config_file import build_config, load_config

SMALL: dict[str, Any] = {
    "run_name": "run",
    "output_dir": "out",
    "model": "model",
    "vision": "vision",
    "data": {"sets": ["data"]},
    "judge": {"base_url": "http://judge/v1"},
    "steps": 2,
}
TREE = json.loads(json.dumps(dataclasses.asdict(build_config(SMALL))))
KEYS = ["steps", "optimizer.lr", "data.sets", "rollout.group_size", "judge", "lora.rank", "a", "", ".", "steps.a"]
OVERRIDES = st.tuples(st.sampled_from(KEYS), ANY_JSON.map(json.dumps) | st.text(max_size=6)).map("=".join)
FACTS = CheckpointFacts(
    4, Origin("../a", "0" * 64), Origin("a/b", None), (Origin("c", "1" * 64),), "sft", 1, {"a": "1"}
)
VISION = json.loads(json.dumps(StillVQConfig(base_channels=32, channel_multiplier=(1,), attn_resolutions=()).to_dict()))


def refused_in_one_line(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except UserError as error:
        assert "\n" not in str(error), str(error)
        return None


@given(with_another_value(TREE))
def test_a_config_is_built_or_refused(tree: Any) -> None:
    """Guards: a TypeError of a range check for a value of another type; a NaN that passes it."""
    if isinstance(tree, dict):
        config = refused_in_one_line(build_config, tree)
        assert config is None or isinstance(config, Config)


@given(damaged(json.dumps(SMALL).encode()) | broken_json(TREE), st.lists(OVERRIDES, max_size=2))
def test_a_file_and_its_overrides_are_read_or_refused(text: bytes, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.jsonnet"
        path.write_bytes(text)
        refused_in_one_line(load_config, path, overrides)


@given(broken_json(VISION))
def test_a_vision_tokenizers_config_is_read_or_refused(text: bytes) -> None:
    """Without weights beside it nothing can be loaded, so all end in one line."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_bytes(text)
        assert refused_in_one_line(StillVQ.from_pretrained, Path(name)) is None


@given(broken_json({"version": VERSION, **dataclasses.asdict(FACTS)}))
def test_what_a_checkpoint_says_is_read_or_refused(text: bytes) -> None:
    """Guards: a TypeError of a path or a comparison for a value of another type, in the file of a stranger."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / FACTS_FILE).write_bytes(text)
        facts = refused_in_one_line(read_facts, name)
        assert facts is None or isinstance(facts, CheckpointFacts)
        if facts is not None and facts.vision is not None and str(facts.vision.name).startswith("/"):
            refused_in_one_line(setup_of, name)
