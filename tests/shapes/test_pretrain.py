"""The stand-in for Emu3's pretraining: its optimizer, and that ranks compute what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import sft_world
import torch
from safetensors.torch import load_file
from warm_ranks import warm_ranks

from emu3.checkpoint_facts import read_facts
from emu3.errors import UserError
from emu3.train_image_editing.dataset import EncodedRows
from shapes import pretrain
from shapes.pretrain import Muon, PretrainSpec, orthogonalized

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft_world.model_folder(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft_world.data(tmp_path_factory.mktemp("data") / "train", sft_world.edits(24))


def test_an_update_is_as_torchs_own() -> None:
    """torch rounds to bfloat16 on the way, which has 8 bits; an update is 0.2 lr in the root mean square."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    start = [parameter.detach().clone() for parameter in ours]
    mine = Muon(ours, 0.01, momentum=0.9, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    for one, two, before in zip(ours, theirs, start, strict=True):
        moved = (two - before).norm()
        assert moved > 0.001 and (one - two).norm() < 0.03 * moved


def test_an_orthogonalized_matrix_goes_equally_far_in_all_directions() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 16, 48) * torch.logspace(0, 1, 16)[None, :, None]
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.6 and values.max() < 1.25
    assert torch.equal(orthogonalized(matrices.mT), orthogonalized(matrices).mT)


def test_it_learns_and_says_what_it_learned_from(model: Path, data: Path, tmp_path: Path) -> None:
    pretrain.pretrain(model, [data], tmp_path / "base", PretrainSpec(steps=3, batch_size=4))
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "base/model.safetensors")
    assert all((before[name] != after[name]).any() for name in before)
    facts = read_facts(tmp_path / "base")
    assert facts is not None and facts.objective == "pretraining" and facts.data[0].name == "train"


def test_rows_of_all_datasets_come_from_the_start(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against the order of the sets, in which the scarce one came when training was over."""
    seen, read = set(), EncodedRows.__getitem__
    monkeypatch.setattr(EncodedRows, "__getitem__", lambda rows, index: (seen.add(rows), read(rows, index))[1])
    pretrain.pretrain(model, [data, data], tmp_path / "base", PretrainSpec(2, 8, coefficients=(1.0, 1.0)))
    assert len(seen) == 2


def test_ranks_share_a_batch(model: Path, data: Path, tmp_path: Path) -> None:
    """Equal but for the order of sums: a gradient that is averaged over ranks and not over weights would not be."""
    arguments = ["--model", model, "--data", data, "--steps", 3, "--batch-size", 4, "--output"]
    for ranks in (0, 2):
        command = ["-m", "shapes.pretrain", *map(str, arguments), str(tmp_path / f"of-{ranks}")]
        done = warm_ranks(ranks, *command)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / f"of-{ranks}/model.safetensors") for ranks in (0, 2))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def test_a_batch_that_ranks_cannot_share_is_refused(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_place", lambda: (0, 3))
    with pytest.raises(UserError, match="a batch of 4 rows cannot be shared by 3 ranks"):
        pretrain.pretrain(model, [data], tmp_path / "base", PretrainSpec(steps=1, batch_size=4))
    assert not (tmp_path / "base").exists()
