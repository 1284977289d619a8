"""A checkpoint on a Hub is judged by its headers as it would be after the download, and little more is sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from huggingface_hub import close_session, constants
from safetensors.torch import load_file, save_file

from emu3 import hub_headers
from emu3.errors import UserError
from emu3.hub_headers import RemoteCheckpoint
from emu3.mllm.language_model import load_language_model, new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import random_vqvae, save_baai

MODEL, VISION = "lab/model", "lab/vision"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A language model of about 5 MB in four shards, and an image tokenizer in BAAI's layout."""
    folder = tmp_path_factory.mktemp("whole")
    train_ranks(["make it red"] * 3, 270, folder / "ranks")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks", 64)
    model = new_language_model(
        tokenizer.layout, hidden_size=128, layers=6, heads=4, kv_heads=2, ffn_size=320, max_positions=64, seed=0
    )
    save_checkpoint(model, tokenizer, folder / "model", max_shard_size="1MB")
    vqvae = random_vqvae(
        base_channels=32, channel_multiplier=(1, 2), attn_resolutions=(1,), num_res_blocks=1, hidden_size=64,
        codebook_size=64,
    )  # fmt: skip
    save_baai(vqvae, folder / "vision")
    return {MODEL: folder / "model", VISION: folder / "vision"}


@pytest.fixture
def hub(whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Copies of both, for tests to break."""
    copies = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in whole.items()}
    with FakeHub({name: {"main": copy, "v1": copy} for name, copy in copies.items()}) as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN", "hf_marker")
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield server
        close_session()


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_model_is_judged_by_a_hundredth_of_its_bytes(hub: FakeHub) -> None:
    """The figures are those of the loaded model; guards a check that fetches what it is to spare."""
    folder = hub.folder(MODEL)
    model = load_language_model(folder)
    checkpoint = RemoteCheckpoint(MODEL)
    fit, vocabulary = checkpoint.language_model()
    assert (fit.tensors, vocabulary) == (len(model.state_dict()), model.config.vocab_size)
    assert fit.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert fit.bytes == size(folder) > 3_000_000 and len(list(folder.glob("*.safetensors"))) > 3
    assert checkpoint.files is not None
    assert hub.sent == checkpoint.files.received < fit.bytes / 100
    assert RemoteCheckpoint(folder).language_model()[0].tensors == fit.tensors


def test_a_revision_is_asked_for_by_name(hub: FakeHub) -> None:
    RemoteCheckpoint(f"{MODEL}@v1").language_model()
    assert all("/resolve/v1/" in path for path in hub.asked)


def test_an_image_tokenizer_is_folded_without_numbers(hub: FakeHub) -> None:
    fit = RemoteCheckpoint(VISION).vision()
    assert fit.bytes == size(hub.folder(VISION)) and hub.sent < fit.bytes / 10
    assert RemoteCheckpoint(hub.folder(VISION)).vision().parameters == fit.parameters
    StillVQ.from_pretrained(hub.folder(VISION))


def test_the_text_tokenizer_is_the_loaded_one(hub: FakeHub) -> None:
    assert RemoteCheckpoint(MODEL).text_tokenizer().layout == TextTokenizer.from_pretrained(hub.folder(MODEL)).layout
    refused(RemoteCheckpoint(VISION).text_tokenizer, f"{VISION}.*emu3_vision_tokens.txt does not exist")


def test_the_key_goes_to_the_hub_alone(hub: FakeHub) -> None:
    """Guards a login that is sent on to the host that a download is redirected to."""
    hub.elsewhere = True
    RemoteCheckpoint(MODEL).language_model()
    hosts = {host for host, _ in hub.authorizations}
    assert hosts == {"127.0.0.1", "localhost"}
    assert {key for host, key in hub.authorizations if host == "127.0.0.1"} == {"Bearer hf_marker"}
    assert {key for host, key in hub.authorizations if host == "localhost"} == {None}


def test_weights_that_do_not_fit_are_refused_in_the_loaders_words(hub: FakeHub) -> None:
    """A tensor that is missing, and one of another shape: as `load_language_model` says of the folder."""
    folder = hub.folder(MODEL)
    index = json.loads((folder / INDEX).read_text())
    norm = "model.layers.0.input_layernorm.weight"
    shard = folder / index["weight_map"][norm]
    tensors = load_file(shard)
    save_file({**tensors, norm: torch.ones(7)}, shard)
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), f"1 of another shape \\(first: {norm}")
    refused(lambda: load_language_model(folder), f"1 of another shape \\(first: {norm}")
    tensors.pop(norm)
    save_file(tensors, shard)
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), f"lists 1 tensors that they do not hold .*{norm}")
    index["weight_map"].pop(norm)
    (folder / INDEX).write_text(json.dumps(index))
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), f"1 missing \\(first: {norm}")


def test_an_image_tokenizer_that_does_not_fit(hub: FakeHub) -> None:
    file = hub.folder(VISION) / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "encoder.conv_in.weight": torch.ones(5, 3, 3, 3)}, file)
    refused(lambda: RemoteCheckpoint(VISION).vision(), r"does not hold the weights of its config.json: .*conv_in")
    tensors.pop("encoder.conv_in.weight")
    save_file(tensors, file)
    refused(lambda: RemoteCheckpoint(VISION).vision(), r"lack 'encoder.conv_in.weight'")
    refused(lambda: RemoteCheckpoint(MODEL).vision(), "not the config of a vision tokenizer")


def test_a_server_without_ranges_is_left_at_once(hub: FakeHub) -> None:
    """Guards 17 GB that come where 8 bytes were asked for."""
    hub.ranges = False
    big = hub.folder(VISION) / "model.safetensors"
    with big.open("ab") as file:
        file.truncate(2**26)
    refused(lambda: RemoteCheckpoint(VISION).vision(), "no range requests")
    close_session()
    assert hub.sent < 2**24


@pytest.mark.parametrize(
    ("name", "message"),
    [("lab/nothing", "is private, gated or not there"), (f"{MODEL}x", "not there"), ("no-id", "is no Hub id")],
)
def test_what_is_not_there(hub: FakeHub, name: str, message: str) -> None:
    refused(lambda: RemoteCheckpoint(name).language_model(), message)


def test_gated_missing_and_damaged_files(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.folder(MODEL)
    last = sorted(folder.glob("*.safetensors"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    refused(
        lambda: RemoteCheckpoint(MODEL).language_model(), f"{last.name} has .* bytes, its header speaks of .*not whole"
    )
    last.write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1}')
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), "a header that cannot be read")
    last.write_bytes(b"\xff" * 100)
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), "no safetensors file")
    last.unlink()
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), f"{last.name} does not exist")
    (folder / "config.json").write_text("{")
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), "config.json is not JSON")
    (folder / "config.json").unlink()
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), "has no config.json")
    monkeypatch.setattr(hub_headers, "LONGEST", 100)
    refused(lambda: RemoteCheckpoint(VISION).vision(), "larger than 100 bytes")
    hub.gated.add(MODEL)
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), "is gated: ask for access")


def test_nobody_answers(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    refused(lambda: RemoteCheckpoint(MODEL).language_model(), "the Hub cannot be reached")
