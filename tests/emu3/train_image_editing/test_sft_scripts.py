"""The shell entry points, run as a person would on a machine without a GPU, and the DeepSpeed settings beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sft_world import image_bytes, save_vision

from emu3.mllm.language_model import load_language_model

SCRIPTS = Path(__file__).parents[3] / "scripts"


def test_offload_only_moves_the_optimizer_and_the_parameters() -> None:
    """Two files that drift apart would make 'with offload' another experiment."""
    plain, offload = (json.loads((SCRIPTS / name).read_text()) for name in ("zero3.json", "zero3_offload.json"))
    # DeepSpeed's own CPU optimizer would have to be compiled on the node, and decays the norms' weights as well.
    assert offload.pop("zero_force_ds_cpu_optimizer") is False
    for key in ("offload_optimizer", "offload_param"):
        assert offload["zero_optimization"].pop(key)["device"] == "cpu"
    assert offload == plain
    assert plain["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"], "no model could be saved"


@pytest.mark.slow
def test_tokenize_then_fine_tune(model: Path, tmp_path: Path) -> None:
    """Every flag in the scripts has to exist, and the one stage has to read what the other wrote."""
    cells = [{"bytes": image_bytes(seed), "path": None} for seed in range(8)]
    rows = [{"a": cells[i], "b": cells[i + 4], "text": "more", "why": "because"} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    save_vision(tmp_path / "vision", codebook_size=16)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "WORKERS": "1",
        "GPUS": "0",
        "MODEL_PATH": str(model),
        "DATAPATH": "codes codes",
        "COEF": "1 0.5",
        "COT_KEYS": "why",
        "VALPATH": "codes",
        "IMAGE_AREA": "1024",
        "MAX_POS_EMB": "250",
        "OUTPUT_DIR": "runs",
        "EXP_NAME": "try",
    }
    tokenize = [
        "tokenize.sh", "--dataset-name", "pairs.parquet", "--source", "local", "--output-path", "codes",
        "--model-path", "vision", "--original-image-key", "a", "--edited-image", "b", "--edit-instruction", "text",
        "--CoT-keys", "why", "--image-area", "1024",
    ]  # fmt: skip
    for command in (tokenize, ["ie_sft.sh", "--max_steps", "1", "--gradient_accumulation_steps", "1"]):
        path = str(SCRIPTS / command[0])
        subprocess.run(["bash", path, *command[1:]], cwd=tmp_path, env=environment, check=True)
    assert load_language_model(tmp_path / "runs" / "try" / "final").config.max_position_embeddings == 250
