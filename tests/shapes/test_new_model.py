"""The small model of the world: its tokenizer knows the world's words, and it is the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emu3.checkpoint_facts import Setup, setup_of
from emu3.errors import UserError
from emu3.files import sha256_of
from emu3.mllm.language_model import load_language_model
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from shapes.new_model import build


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = StillVQConfig(
        base_channels=32,
        channel_multiplier=(1,),
        num_res_blocks=0,
        attn_resolutions=(),
        codebook_size=16,
        temporal_downsample_factor=1,
        patch_size=8,
        norm="position",
        middle_attention=False,
    )
    folder = tmp_path_factory.mktemp("vision") / "vision"
    StillVQ(config).save_pretrained(folder)
    return folder


def table(file: Path, **columns: list[str]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_the_checkpoint_loads_and_fits_the_vision_tokenizer(vision: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "data.parquet", instruction=["remove the red circle"] * 9, reasoning_verbose=["a box"] * 9)
    for name in ("one", "two"):
        build([data], vision, tmp_path / name, ranks=270, layers=1, width=32, seed=0)
    tokenizer = TextTokenizer.from_pretrained(tmp_path / "one")
    assert tokenizer.layout.codebook_size == 16
    assert len(tokenizer.encode("remove the red circle")) < len("remove the red circle")
    assert setup_of(tmp_path / "one") == Setup(str(vision), 65536)  # it has seen no image yet
    assert load_language_model(tmp_path / "one").config.vocab_size == tokenizer.layout.vocab_size
    weights = [sha256_of(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_reasoning_is_optional_but_some_text_is_not(vision: Path, tmp_path: Path) -> None:
    """Photographs come without chains of thought."""
    data = table(tmp_path / "data.parquet", instruction=["make them stand up"])
    build([data], vision, tmp_path / "model", ranks=260, layers=1, width=32, seed=0)
    other = table(tmp_path / "other.parquet", caption=["a dog"])
    with pytest.raises(UserError, match="has no column instruction or reasoning_verbose; it has caption"):
        build([other], vision, tmp_path / "none", ranks=260, layers=1, width=32, seed=0)
    assert not (tmp_path / "none").exists()
