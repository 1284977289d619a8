"""Several ranks, each with an engine of its own: `torchrun --nproc-per-node N vllm_ranks.py FOLDER`.

Each rank loads the weights of its number, samples, and writes the tokens to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from vllm_world import world_model, world_request

from emu3.mllm.vllm.llm_engine import VllmSettings
from emu3.mllm.vllm.sampler import VllmSampler, named_weights


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = world_model(rank)
    sampler = VllmSampler(model.config, VllmSettings(torch.float32, max_sequences=4, sleep=True), torch.device("cpu"))
    for _ in range(2):
        sampler.load(named_weights(model))
        # Not as many as the other rank: nothing of an engine may wait for another one's.
        requests = [world_request(prompt, 2) for prompt in range(2 + rank)]
        tokens = [[sample.tokens for sample in group] for group in sampler.sample(requests)]
        sampler.sleep()
    (folder / f"{rank}.json").write_text(json.dumps(tokens))
    total = torch.tensor([rank])
    torch.distributed.all_reduce(total)  # the trainer's group is as it was
    assert total.item() == sum(range(torch.distributed.get_world_size()))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
