"""Fine-tuning with a fast product of linear layers (`emu3.mllm.product`)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import sft_world
import torch

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model
from emu3.mllm.product import check_product
from emu3.train_image_editing import sft
from emu3.train_image_editing.sft import SftArguments

GOLDEN = Path(__file__).parents[2] / "golden" / "sft.json"


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("product", "bound"), [("onednn", 1e-4), ("bf16", 1e-2)])
def test_a_fast_product_trains_alike_and_stays_with_its_run(
    model: Path, train_data: Path, tmp_path: Path, product: Literal["onednn", "bf16"], bound: float
) -> None:
    """Against the golden losses: `onednn` within their own tolerance; `bf16` rounds factors by 2^-9, which moves a loss
    in the third digit. A run that goes on is the same bit for bit, and with another product another run."""
    try:
        check_product("", product, torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))
    values: dict[str, Any] = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}
    ours = SftArguments(
        model_name_or_path=str(model), train_data=[str(train_data)], changed_token_weight=4.0, product=product
    )
    whole = sft.train(ours, sft_world.trainer_arguments(tmp_path / "whole", **values))
    golden = json.loads(GOLDEN.read_text())["losses"]
    assert losses(tmp_path / "whole") == pytest.approx(golden, rel=bound)
    if product == "bf16":
        assert losses(tmp_path / "whole") != pytest.approx(golden, rel=1e-6), "nothing was rounded"

    cut = sft_world.trainer_arguments(tmp_path / "cut", save_strategy="steps", save_steps=4, **values)
    sft.train(ours, cut)
    shutil.rmtree(tmp_path / "cut/final")
    shutil.rmtree(tmp_path / "cut/checkpoint-8")
    with pytest.raises(UserError, match=f'product="{product}", this one has product="plain"'):
        sft.train(replace(ours, product="plain"), cut)
    resumed = sft.train(ours, cut)
    expected, found = (load_language_model(folder).state_dict() for folder in (whole, resumed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(UserError, match=f"--product {product} is for float32 and goes without --bf16"):
        sft.train(ours, sft_world.trainer_arguments(tmp_path / "other", bf16=True))
