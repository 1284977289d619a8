"""An Emu3-shaped language model with random weights and a text tokenizer for the words of this world.

    python -m shapes.new_model --data data/simple.parquet --vision vision --output init

The tokenizer is a byte-level BPE of a few hundred ranks, learned from the instructions and chains of thought of the
training data and laid out like Emu3's. The model is transformers' `Emu3ForCausalLM` with a million parameters.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from emu3.checkpoint_facts import CheckpointFacts, vision_origin
from emu3.errors import UserError, run_main
from emu3.files import reading_parquet
from emu3.flags import CommandParser
from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.settings import COUNT, SEED
from emu3.tokenizer.model import StillVQ

TEXT_COLUMNS = ("instruction", "reasoning_verbose")
TEXTS = 4000  # rows to learn the ranks from


def build(data: list[Path], vision: Path, output_dir: Path, ranks: int, layers: int, width: int, seed: int) -> None:
    """Write a checkpoint folder."""
    texts = []
    for file in data:
        with reading_parquet(file):
            found = pq.read_schema(file).names
        columns = [column for column in TEXT_COLUMNS if column in found]
        if not columns:
            raise UserError(f"{file} has no column {' or '.join(TEXT_COLUMNS)}; it has {', '.join(found)}")
        table = pq.read_table(file, columns=columns).slice(0, TEXTS)
        texts += [text for column in columns for text in table[column].to_pylist()]
    codes = StillVQ.from_pretrained(vision).config.codebook_size
    facts = CheckpointFacts(vision=vision_origin(vision))
    with tempfile.TemporaryDirectory() as folder:
        rank_file = Path(folder) / "emu3.tiktoken"
        train_ranks(texts, ranks, rank_file)
        tokenizer = TextTokenizer.from_rank_file(rank_file, codes)
    model = new_language_model(
        tokenizer.layout,
        hidden_size=width,
        layers=layers,
        heads=width // 32,
        kv_heads=width // 32,
        ffn_size=3 * width,
        max_positions=512,
        rope_theta=1e4,
        attention_bias=True,
        tie_embeddings=True,
        initializer_range=0.06,  # transformers' 0.02 suits a width of thousands; here it costs a thousand steps
        seed=seed,
    )
    save_checkpoint(model, tokenizer, output_dir, facts=facts)
    print(f"model: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {ranks} text ranks")


def main() -> None:
    parser = CommandParser(old={"--output-dir": "--output"}, description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="Parquet files of shapes.write_data")
    parser.add_argument("--vision", type=Path, required=True, help="vision tokenizer folder")
    parser.add_argument("--output", dest="output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--ranks", type=COUNT, default=512, help="text tokens (default 512, bytes included)")
    parser.add_argument("--layers", type=COUNT, default=4, help="default 4")
    parser.add_argument("--width", type=COUNT, default=128, help="a multiple of 32 (default 128)")
    parser.add_argument("--seed", type=SEED, default=0)
    options = parser.parse_args()
    build(
        options.data,
        options.vision,
        options.output_dir,
        options.ranks,
        options.layers,
        options.width,
        options.seed,
    )


if __name__ == "__main__":
    run_main(main)
