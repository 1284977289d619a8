"""The trainer of small tokenizers, on images that are made of twelve different patches."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from emu3.errors import run_main
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.train import TINY, TrainSpec, main, psnr, read_images, train, without_equal_codes

CONFIG = replace(TINY, base_channels=32, codebook_size=32)
SPEC = TrainSpec(steps=250, batch_size=8, learning_rate=1e-2)
PATCHES = 12


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Grids of 3x3 patches of 8x8 pixels, each patch one of twelve: a colour, plain or with a bright square."""
    colours = torch.cartesian_prod(*[torch.tensor([-0.9, 0.3])] * 3)[1:7]
    patches = colours.repeat(2, 1)[:, :, None, None].repeat(1, 1, 8, 8)
    patches[6:, :, 2:6, 2:6] = 1.0
    grid = patches[torch.randint(PATCHES, (count, 3, 3), generator=torch.Generator().manual_seed(seed))]
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, 24, 24)


@pytest.fixture(scope="module")
def trained() -> StillVQ:
    return train(images(64), CONFIG, SPEC)


def test_it_learns_the_images(trained: StillVQ) -> None:
    """Guards every part of the loop at once: 32 codes for twelve patches leave nothing to lose."""
    torch.manual_seed(0)
    fresh = psnr(StillVQ(CONFIG).eval(), images(16, seed=5))
    short = psnr(train(images(64), CONFIG, replace(SPEC, steps=40)), images(16, seed=5))
    long = psnr(trained, images(16, seed=5))
    assert fresh + 3 < short and short + 3 < long
    assert long > 40


def test_a_patch_has_one_code_and_most_codes_have_a_patch(trained: StillVQ) -> None:
    """Guards a codebook that collapses to a few codes, and one in which the same patch has several: a language model
    then has to guess which of them was meant."""
    data = images(64, seed=6)
    codes = trained.encode(data)
    patches = data.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3)
    seen: dict[bytes, set[int]] = {}
    for patch, code in zip(patches.flatten(0, 2), codes.flatten().tolist(), strict=True):
        seen.setdefault(patch.numpy().tobytes(), set()).add(code)
    assert len(seen) == PATCHES
    assert all(len(of_patch) == 1 for of_patch in seen.values())
    assert len(set.union(*seen.values())) == PATCHES
    assert trained.config.codebook_size == len(trained.quantizer.codebook) < 2 * PATCHES


def test_the_seed_decides(trained: StillVQ) -> None:
    """Guards random numbers that come from elsewhere; whoever trains before must not matter."""
    torch.rand(3)
    again, other = (train(images(64), CONFIG, replace(SPEC, seed=seed)) for seed in (0, 1))
    ours, theirs = trained.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["encoder.conv_in.weight"], other.state_dict()["encoder.conv_in.weight"])


def test_codes_that_decode_alike_become_the_one_that_is_used_most(trained: StillVQ) -> None:
    """Guards the choice among equal codes, and that what is left decodes as before."""
    count = trained.config.codebook_size
    doubled = StillVQ.from_state(
        replace(trained.config, codebook_size=2 * count),
        {**trained.state_dict(), "quantizer.codebook": trained.quantizer.codebook.repeat(2, 1) * 1.001},
    )
    uses = torch.arange(2.0 * count)
    single = without_equal_codes(doubled, uses)
    assert single.config.codebook_size == count
    data = images(8, seed=7)
    torch.testing.assert_close(single.decode(single.encode(data)), trained.decode(trained.encode(data)))
    # The last codes are used most, and stand first.
    torch.testing.assert_close(single.quantizer.codebook, doubled.quantizer.codebook[count:].flip(0))


def test_psnr_by_definition() -> None:
    """Guards the peak (1.0 of [0, 1]) and the weight of the last, smaller part of the images."""

    class HalfOff(StillVQ):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            return codes + 0.2 * (codes > 0)

    data = torch.cat([torch.full((64, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), -0.5)])
    assert psnr(HalfOff(CONFIG), data) == pytest.approx(-10 * np.log10(0.1**2 * 64 / 65), abs=1e-4)


def cell(size: tuple[int, int] = (16, 16), shade: int = 0) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, cells: list[dict[str, Any] | None]) -> Path:
    path = folder / "images.parquet"
    pq.write_table(pa.Table.from_pylist([{"input": cell} for cell in cells]), path)
    return path


def test_reads_every_column_of_every_file(tmp_path: Path) -> None:
    path = tmp_path / "two.parquet"
    pq.write_table(pa.Table.from_pylist([{"input": cell(shade=0), "output": cell(shade=85)}] * 2), path)
    read = read_images([path, path], ["input", "output"], limit=100, factor=8)
    assert read.shape == (8, 3, 16, 16)
    assert sorted(read[:, 0, 0, 0].tolist()) == pytest.approx([-1.0] * 4 + [85 / 127.5 - 1] * 4)
    assert len(read_images([path], ["input", "output"], limit=3, factor=8)) == 3


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ([cell(), {"bytes": b"no image", "path": None}], [], r"row 1, input cannot be read as an image"),
        ([cell(), None], [], r"row 1, input holds nothing, not an image"),
        ([cell(), cell(size=(8, 16))], [], "all of one size"),
        ([cell(size=(12, 12))] * 2, [], "multiples of 8"),
        ([cell()], [], "two images or more"),
        ([], [], "no column 'input'"),
        ([cell()] * 2, ["--image-key", "after"], "no column 'after'; it has input"),
        ([cell()] * 2, ["--steps", "0"], "--steps"),
        ([cell()] * 2, ["--data", "nowhere.parquet"], "nowhere.parquet does not exist"),
        ([cell()] * 2, ["--data", __file__], "is not a Parquet file"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cells: list[dict[str, Any] | None],
    options: list[str],
    message: str,
) -> None:
    data, output = write(tmp_path, cells), tmp_path / "vision"
    monkeypatch.setattr("sys.argv", ["train", "--data", str(data), "--output-dir", str(output), *options])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: ") and message in told and told.count("\n") == 1
    assert not output.exists()


def test_the_command_writes_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards a command whose result only this process could use."""
    data = write(tmp_path, [cell(shade=shade) for shade in range(0, 250, 10)])
    arguments = ["train", "--data", str(data), "--output-dir", str(tmp_path / "vision"), "--steps", "4"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    vision = StillVQ.from_pretrained(tmp_path / "vision")
    assert f"tokenizer: {vision.config.codebook_size} codes, " in capsys.readouterr().out
    assert vision.encode(torch.zeros(1, 3, 16, 16)).shape == (1, 2, 2)
