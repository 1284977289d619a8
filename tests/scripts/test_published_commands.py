"""The command lines of the published README and scripts, as they stand, in a checkout of its own: tiny models and data
under the published names on a Hub of the test, a judge of the test, no GPU. What is added to a line says so, by `less`.
`python` is a fork of one that has torch loaded; `torchrun` is as it is.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub
from PIL import Image
from tiny_vision import save_tiny_vision
from warm_ranks import warm_python

from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.tensor_files import TensorFiles
from emu3.train_image_editing.shards import read_rows

pytestmark = pytest.mark.slow  # each command is a process that imports torch, and the first of them train a model

ROOT = Path(__file__).parents[2]
MODELS = (
    "BAAI/Emu3-Stage1",
    "BAAI/Emu3-Gen",
    "mair-lab/sft-simple",
    "mair-lab/sft-simple.rl-simple-n-complex",
    "mair-lab/earl-sft-simple.rl-simple-n-complex-scaled",
)
EARL = MODELS[-1]
LIBRARIES = ("rl.train", "emu3.train_image_editing.sft", "emu3.train_image_editing.prepare_data", "baselines.evaluate")


def images(seed: int, count: int) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = []
    for index in range(count):
        pixels = np.random.default_rng((seed, index)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        sink = pa.BufferOutputStream()
        Image.fromarray(pixels).save(sink, "png")
        found.append({"bytes": sink.getvalue().to_pybytes(), "path": None})
    return pa.array(found, kind)


def table(columns: dict[str, object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    folder = tmp_path_factory.mktemp("hub")
    texts = ["make it red", "remove the ball", "first a ball, then none"]
    train_ranks(texts * 3, 280, folder / "ranks")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks", 64)
    model = new_language_model(
        tokenizer.layout, hidden_size=32, layers=1, heads=2, kv_heads=1, ffn_size=32, max_positions=3000, seed=0
    )
    save_checkpoint(model, tokenizer, folder / "model")
    save_tiny_vision(folder / "vision")
    models = {name: {"main": folder / "model"} for name in MODELS} | {
        "BAAI/Emu3-VisionTokenizer": {"main": folder / "vision"}
    }
    rows = 4
    edits = {
        "source_image": images(0, rows),
        "edited_image": images(1, rows),
        "edit_instruction": texts[:2] * 2,
        "source_image_grounding_information": texts[:2] * 2,
        "conditioning_information": texts[:2] * 2,
        "thinking": texts[:2] * 2,
    }
    omniedit = {
        "src_img": images(0, rows),
        "edited_img": images(1, rows),
        "edited_prompt_list": [[text] for text in texts[:2] * 2],
        "task": ["add", "swap"] * 2,
        "omni_edit_id": [f"add_{index}" for index in range(rows)],
    }
    aurora = {
        "input": images(0, rows),
        "output": images(1, rows),
        "instruction": texts[:2] * 2,
        "source": ["ag"] * rows,
    }
    datasets = {
        "lab/edits": {"main": {"data/train-00000-of-00001.parquet": table(edits)}},
        "TIGER-Lab/OmniEdit-Filtered-1.2M": {"main": {"data/dev-00000-of-00001.parquet": table(omniedit)}},
        "McGill-NLP/aurora-bench": {"main": {"data/test-00000-of-00001.parquet": table(aurora)}},
    }
    with FakeHub(models, datasets) as hub:
        yield hub


class Checkout:
    """A clone, without what is built."""

    def __init__(self, folder: Path, hub: FakeHub) -> None:
        self.folder = folder
        for name in ("scripts", "emu3", "rl", "baselines"):
            (folder / name).symlink_to(ROOT / name)
        foreign = re.compile(
            "APP__|SLURM_|MASTER_|NNODES|NODE_RANK|RANK|WORLD_SIZE|LOCAL_RANK|ADDRESS_FILE|HF_|PYTHONPATH"
        )
        self.environment = {name: value for name, value in os.environ.items() if not foreign.match(name)} | {
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub.url,
            "NO_PROXY": "127.0.0.1,localhost",
            "OPENAI_API_KEY": "key",
        }

    def run(self, lines: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """What a person types into one shell, which is there to the end."""
        lines = f"{lines}\necho ended $?"
        done = subprocess.run(
            ["bash", "-c", lines], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1800
        )
        assert done.stdout.splitlines()[-1] == f"ended {code}", (done.stdout[-1000:], done.stderr[-3000:])
        return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path_factory.mktemp("EARL"), hub)
    with warm_python(checkout.folder / "bin", LIBRARIES, checkout.environment):
        yield checkout


VARIABLES = """
data_name="lab/edits"
output_dir="data/edits"
original_image_key="source_image"
edit_instruction="edit_instruction"
CoT_keys=("source_image_grounding_information" "conditioning_information" "thinking")
edited_image="edited_image"
image_area=1024
split="train"
"""


@pytest.fixture(scope="module")
def tokenized(checkout: Checkout) -> Path:
    """What the README's command for one GPU writes."""
    checkout.run(f"""export PYTHONPATH=$(pwd){VARIABLES}
python ./emu3/train_image_editing/prepare_data.py --dataset-name "$data_name" --output-path "$output_dir" \\
    --original-image-key "$original_image_key" --edit-instruction "$edit_instruction" --CoT-keys "${{CoT_keys[@]}}" \\
    --edited-image "$edited_image" --image-area $image_area --random-seed 42""")
    return checkout.folder / "data/edits"


def test_tokenize_by_the_readme_and_by_the_script(checkout: Checkout, tokenized: Path) -> None:
    rows = read_rows(tokenized)
    assert len(rows) == 4 and set(rows[0].cot) == {
        "source_image_grounding_information", "conditioning_information", "thinking"
    }  # fmt: skip
    checkout.run(f"{VARIABLES}output_dir=data/again\n. ./scripts/tokenize.sh --random-seed 42")
    for row, again in zip(rows, read_rows(checkout.folder / "data/again"), strict=True):
        assert (row.id, row.instruction, row.cot) == (again.id, again.instruction, again.cot)
        assert np.array_equal(row.source, again.source) and row.edited is not None
        assert np.array_equal(row.edited, again.edited)  # type: ignore[arg-type]


@pytest.mark.parametrize("script", ["ie_sft.sh", "ie_sft_offload.sh"])
def test_fine_tune_by_the_scripts(checkout: Checkout, tokenized: Path, script: str) -> None:
    """`less`: of steps."""
    checkout.run(f"""DATAPATH=("data/edits")
VALPATH=("data/edits")
COT_KEYS=('thinking')
VALIDATION_SIZE=1000 IMAGE_AREA=1024 MODEL_PATH=BAAI/Emu3-Stage1 OUTPUT_DIR=sft EXP_NAME={script}
. ./scripts/{script} --max_steps 1 --gradient_accumulation_steps 1""")
    assert (checkout.folder / "sft" / script / "final/model.safetensors").is_file()


def test_fine_tune_by_the_published_command(checkout: Checkout, tokenized: Path) -> None:
    """`less`: of processes and steps, no GPU, and so no DeepSpeed, no TF32 and no bfloat16; nor wandb's account."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = checkout.run(f"""export PYTHONPATH=$(pwd)
torchrun \\
    --nproc_per_node=1 \\
    --nnodes=1 \\
    --node_rank=0 \\
    --master_addr=127.0.0.1 \\
    --master_port={port} \\
    ./emu3/train_image_editing/train_image_editing.py \\
    --model_name_or_path BAAI/Emu3-Stage1 \\
    --data_paths "data/edits" \\
    --validation_paths "data/edits" \\
    --validation_size 1000 \\
    --image_area 1024 \\
    --max_position_embeddings 3000 \\
    --output_dir "sft/published" \\
    --num_train_epochs 10 \\
    --per_device_train_batch_size 2 \\
    --per_device_eval_batch_size 1 \\
    --gradient_accumulation_steps 8 \\
    --eval_strategy steps \\
    --evaluation_strategy steps \\
    --eval_steps 100 \\
    --save_strategy steps \\
    --save_steps 100 \\
    --save_total_limit 50 \\
    --learning_rate 1e-4 \\
    --min_learning_rate 1e-5 \\
    --weight_decay 0.1 \\
    --max_grad_norm 5.0 \\
    --adam_beta1 0.9 \\
    --adam_beta2 0.95 \\
    --adam_epsilon 1e-6 \\
    --warmup_steps 30 \\
    --lr_scheduler_type "cosine_with_min_lr" \\
    --logging_steps 1 \\
    --gradient_checkpointing True \\
    --dataloader_num_workers 4 \\
    --run_name "Emu3-Base-SFT" \\
    --cot_keys 'thinking' \\
    --use_cpu --max_steps 1""")
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert notes[0].endswith("train_image_editing.py is python -m emu3.train_image_editing.sft here")
    assert "--data_paths is --train_data here" in notes[1] and len(notes) == 2
    assert (checkout.folder / "sft/published/final/model.safetensors").is_file()


def test_published_lists_name_the_command_that_converts(checkout: Checkout) -> None:
    """The archives of tokenized data hold `.pth` files and such a list."""
    listed = checkout.folder / "published/list/tokenized_datalist.json"
    listed.parent.mkdir(parents=True)
    listed.write_text(json.dumps({"prefix": "/theirs/feature", "path_list": ["0.pth"]}))
    done = checkout.run('DATAPATH=("published/list/tokenized_datalist.json")\n. ./scripts/ie_sft.sh', code=2)
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "python -m emu3.train_image_editing.convert_published --data published --output-path published" in error


def test_quick_inference_without_variables(checkout: Checkout, hub: FakeHub) -> None:
    """`less`: of pixels, for which the script has a variable. 700 rows are asked for, and four there."""
    checkout.run("IMAGE_AREA=1024\n. ./scripts/batch_eval.sh")
    [sample] = (checkout.folder / "runs/batch_eval").iterdir()
    settings = json.loads((sample / "settings.json").read_text())
    assert settings["options"]["weights"]["model"]["hub"] == EARL
    assert settings["options"]["weights"]["tokenizer"]["hub"] == "BAAI/Emu3-Gen"
    assert settings["options"]["weights"]["vision"]["hub"] == "BAAI/Emu3-VisionTokenizer"
    assert "TIGER-Lab/OmniEdit-Filtered-1.2M" in settings["origin"]
    assert len(list(sample.rglob("*-edited.png"))) == 4


def test_quick_inference_with_the_published_variables(checkout: Checkout, tokenized: Path) -> None:
    checkout.run("""SPLIT="dev"
RANDOM_SEED=43
IMAGE_AREA=1024
VAL_SIZE=2
BS=100
K_SAMPLE=2
SOURCE="HF"
MODEL_LOCATION="HF"
MODEL_PATH="mair-lab/sft-simple"
HF_REVISION="main"
MODE="mixed"
NEW_TOKENS=20
SAVE_DIR="mixed"
original_image_key="src_img"
edit_instruction="edited_prompt_list"
edited_image="edited_img"
edit_type_key="task"
VALPATH=("TIGER-Lab/OmniEdit-Filtered-1.2M")
. ./scripts/batch_eval.sh""")
    for seed in (43, 44):
        table = pq.read_table(checkout.folder / f"mixed/sample-{seed}/predictions.parquet").to_pylist()
        assert len(table) == 2 and all(row["reasoning"] is not None for row in table)
    done = checkout.run("SOURCE=local VALPATH=nowhere . ./scripts/batch_eval.sh", code=2)
    assert done.stderr == "error: SOURCE is local, but there is no nowhere on this disk\n"


class Judge:
    """Gives [8, 9] to everything, under /v1 alone, as vLLM does. asked: paths."""

    def __init__(self) -> None:
        judge = self
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({"data": [{"id": "Qwen/Qwen2.5-VL-72B-Instruct"}]})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                message = {"content": '{"reasoning": "", "score": [8, 9]}'}
                self.answer({"choices": [{"message": message, "finish_reason": "stop"}]})

            def answer(self, value: object) -> None:
                judge.asked.append(self.path)
                body = json.dumps(value).encode() if self.path.startswith("/v1/") else b"{}"
                self.send_response(200 if self.path.startswith("/v1/") else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def judge() -> Iterator[Judge]:
    judge = Judge()
    yield judge
    judge.server.shutdown()
    judge.server.server_close()


def test_benchmarks_and_viescore(checkout: Checkout, judge: Judge) -> None:
    """`less`: of benchmarks and pixels. The judge's own step says what it is called here, and that is done."""
    checkout.environment["PYTHONPATH"] = str(checkout.folder)
    done = checkout.run("""mkdir -p work && cd work
BENCHMARKS=aurora bash ../baselines/scripts/our_eval.sh --image-area 1024""")
    results = checkout.folder / "work/results/aurora"
    assert sorted(path.name for path in results.iterdir()) == [
        f"{name.replace('/', '--')}-seed0" for name in sorted(MODELS[-2:])
    ]
    done = checkout.run("cd baselines\npython gen_viescore.py --json_path {PATH_TO_RESULTS_JSON}", code=2)
    assert done.stderr.count("\n") == 1 and "python -m baselines.score --predictions results/" in done.stderr
    name = f"{EARL.replace('/', '--')}-seed0"
    checkout.run(f"python -m baselines.score --predictions work/results/aurora/{name} --judge-url {judge.url}")
    [stats] = (results / name).glob("*_viescore_stats.json")
    found = json.loads(stats.read_text())
    for key in ("VIE_SC", "VIE_PQ", "VIE_ALL", "EDIT_SUCCESS", "OVEREDIT", "LOOKS_NATURAL", "NO_ARTIFACT"):
        assert set(found[key]) == {"mean", "std"}
    assert found["VIE_SC"] == {"mean": 8.0, "std": 0.0} and found["per_source"]["ag"]["OVEREDIT"]["mean"] == 9.0


def test_reinforcement_learning(checkout: Checkout, tokenized: Path, judge: Judge) -> None:
    """`less`: of GPUs, of what only they can, and of steps. The reward server's address has no /v1, as there."""
    (checkout.folder / "RL_DATASETS/data/omniedit").mkdir(parents=True)
    (checkout.folder / "RL_DATASETS/data/omniedit/train").symlink_to(tokenized)
    done = checkout.run(f"""CONFIG_NAME="sft_s__rl_s"

export APP__DATA_DIR=RL_DATASETS/data
export APP__BASE_EXP_DIR=RL_EXPERIMENTS
export APP__REWARD_FUNCTION_API_BASE={judge.url}

export APP__RUN_NAME=$CONFIG_NAME
export WANDB_RUN_ID=$CONFIG_NAME

NUM_GPUS=1

export PYTHONPATH=$PYTHONPATH:$(pwd)
python -m rl.simple_launch --nproc $NUM_GPUS \\
    rl/nano_aha_moment.py \\
    "rl/configs/${{CONFIG_NAME}}.jsonnet" \\
    rollout.engine=local rollout.prompts_per_step=2 rollout.group_size=2 steps=1 \\
    compute.precision=fp32 compute.zero=0""")
    assert "note: rl/simple_launch.py is python -m emu3.launch here" in done.stderr
    run = checkout.folder / "RL_EXPERIMENTS/sft_s__rl_s"
    assert TensorFiles.of(run / "final").digest()
    [step] = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "reward" in line]
    assert step["reward"] == pytest.approx(8.0)
    assert "/v1/chat/completions" in judge.asked


def test_what_is_done_elsewhere_is_said_in_one_line(checkout: Checkout) -> None:
    lines = {
        "./rl/scripts/setup_datasets.sh": "convert_published",
        "torchrun --nproc_per_node=1 rl/test_distributed_env.py": "check_node.sh",
        "bash rl/scripts/qwen_node.sh": "reward_server.sh",
        "bash rl/scripts/grpo_rl_job.sh --reward_server auto --run_name a": "scripts/rl.sh",
    }
    for line, advice in lines.items():
        torchrun = line.startswith("torchrun")
        done = checkout.run(f"export PYTHONPATH=$(pwd)\n{line}", code=1 if torchrun else 2)
        [error] = [text for text in done.stderr.splitlines() if text.startswith("error: rl/")]
        assert " is not here; instead: " in error and advice in error
    requirements = ROOT / "rl/requirements.txt"
    assert (requirements.parent / requirements.read_text().split()[1]).resolve() == ROOT / "requirements.txt"
