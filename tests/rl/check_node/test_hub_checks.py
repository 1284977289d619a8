"""The checks of published checkpoints, against a Hub on the loopback and caches on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from hub_cache import cached
from huggingface_hub import close_session, constants

from emu3.errors import UserError
from rl.check_node import hub_checks as hub
from rl.check_node.check import Node, Skipped
from rl.check_node.hub_checks import Released
from rl.check_node.runs import make_world

NODE = Node(0, Path("runs"), None)
MODEL = Released("lab/model")
PLAIN = Released("lab/plain", tokenizer="lab/tokenizer")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("released")
    make_world(folder)
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder / "model", other / "plain")
    shutil.copytree(folder / "model", other / "tokenizer")
    for file in (other / "plain").glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    return {
        "lab/model": folder / "model",
        "lab/plain": other / "plain",
        "lab/tokenizer": other / "tokenizer",
        hub.VISION: folder / "vision",
    }


@pytest.fixture
def server(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({name: {"main": folder} for name, folder in files.items()}) as running:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield running
        close_session()


def test_the_released_ones_are_those_of_the_papers_tables() -> None:
    found = {wanted.name: wanted for wanted in hub.released()}
    assert found[hub.START].tokenizer == hub.TOKENIZER and not found[hub.TOKENIZER].weights
    assert found[hub.VISION].vision
    assert found["mair-lab/sft-simple"].tokenizer == hub.TOKENIZER
    assert found["mair-lab/earl-sft-simple.rl-simple-n-complex-scaled"].tokenizer is None
    assert len(found) == 7


def test_access(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "answers in" in hub.access(NODE)[0]
    server.serve(hub.VISION, None)
    with pytest.raises(UserError, match="private, gated or not there"):
        hub.access(NODE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(UserError, match=r"cannot be reached.*HTTPS_PROXY"):
        hub.access(NODE)
    with pytest.raises(Skipped, match="see the check `hub`"):
        hub.checkpoint(NODE, MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Skipped, match="HF_HUB_OFFLINE"):
        hub.access(NODE)


def test_one_that_is_not_in_the_cache_is_judged_by_its_headers(server: FakeHub, files: dict[str, Path]) -> None:
    line, facts = hub.checkpoint(NODE, MODEL)
    assert line.startswith("not in the cache") and "fits, 21 tensors" in line
    weights = (files["lab/model"] / "model.safetensors").stat().st_size
    assert facts["bytes"] == weights and not facts["cached"]
    assert "fits" in hub.checkpoint(NODE, PLAIN)[0]
    assert "fits" in hub.checkpoint(NODE, Released(hub.VISION, vision=True))[0]
    assert "a text tokenizer of" in hub.checkpoint(NODE, Released("lab/tokenizer", weights=False))[0]
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_one_that_is_in_the_cache_asks_nobody(server: FakeHub, files: dict[str, Path]) -> None:
    cached(files["lab/model"], Path(constants.HF_HUB_CACHE), "lab/model")
    line, facts = hub.checkpoint(NODE, MODEL)
    assert line.startswith("in the cache; fits, 21 tensors") and facts["cached"]
    assert server.asked == []


def test_half_a_checkpoint_is_not_taken_for_one(
    server: FakeHub, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a download that was interrupted, whose index names files that are not there."""
    half = Path(shutil.copytree(files["lab/model"], tmp_path / "half"))
    (half / "model.safetensors").rename(half / "model-00001-of-00002.safetensors")
    (half / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    cached(half, Path(constants.HF_HUB_CACHE), "lab/model")
    assert hub.cached("lab/model") == (None, 1, 2)
    assert hub.checkpoint(NODE, MODEL)[0].startswith("1 of 2 files in the cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Skipped, match="1 files are"):
        hub.checkpoint(NODE, MODEL)


def test_a_checkpoint_that_does_not_fit(server: FakeHub, files: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(files["lab/model"], tmp_path / "broken"))
    config = broken / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 96', '"intermediate_size": 95'))
    server.serve("lab/model", broken)
    with pytest.raises(UserError, match="of another shape"):
        hub.checkpoint(NODE, MODEL)
    server.gated.add("lab/model")
    with pytest.raises(UserError, match="is gated"):
        hub.checkpoint(NODE, MODEL)


def test_another_models_tokenizer(server: FakeHub, files: dict[str, Path], tmp_path: Path) -> None:
    """Guards text that is encoded into ids which the model never saw."""
    other = Path(shutil.copytree(files["lab/tokenizer"], tmp_path / "tokenizer"))
    (other / "tokenizer.json").unlink()
    ranks = (other / "emu3.tiktoken").read_text().splitlines()
    (other / "emu3.tiktoken").write_text("\n".join(ranks[:256]) + "\n")
    server.serve("lab/tokenizer", other)
    with pytest.raises(UserError, match="token ids, the tokenizer of lab/tokenizer"):
        hub.checkpoint(NODE, PLAIN)
