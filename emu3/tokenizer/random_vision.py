"""A vision tokenizer with random weights, written as the published one is.

For measuring speed and for trying the whole path without the download. Every weight matters, biases and running
statistics too, and the codes lie where the latents are, so that images get many different codes and any difference
between two implementations shows. What it decodes is noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from emu3.files import whole_folder, write_json
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import (
    BAAI_FIELDS,
    BAAI_MODEL_TYPE,
    CONFIG_FILE,
    NOT_IN_BAAI,
    PUBLISHED,
    baai_name,
)

SAMPLE = (2, 3, 40, 40)
"""The images whose latents say where the codes lie."""


def random_vqvae(seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any) -> Emu3VQVAE:
    """A temporal network of the published shape but for `sizes`, which are fields of `Emu3VQVAEConfig`.

    Convolutions keep the variance of what they are given. The same arguments give the same weights on one machine.
    """
    with torch.device("meta"):
        vqvae = Emu3VQVAE(Emu3VQVAEConfig(**sizes))
    vqvae.to(dtype)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    vqvae.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)

    with torch.no_grad():
        for name, tensor in vqvae.state_dict().items():
            if tensor.dim() > 1:
                tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)
            elif name.endswith(".running_var"):
                tensor.normal_(1.0, 0.2, generator=generator).abs_()
            elif name.endswith(".weight"):  # of a norm
                tensor.normal_(1.0, 0.3, generator=generator)
            elif name.endswith(".num_batches_tracked"):
                tensor.zero_()
            else:
                tensor.normal_(0.0, 0.3, generator=generator)
        codes = vqvae.quantize.embedding.weight
        codes.normal_(generator=generator)
        images = torch.rand(SAMPLE, generator=generator, dtype=dtype) * 2 - 1
        latents = StillVQ.from_transformers(vqvae, parts="encoder").latents(images)
        deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
        codes.mul_(deviation).add_(mean)
    return vqvae.eval()


def save_baai(vqvae: Emu3VQVAE, folder: Path | str, max_shard_size: int | str = "5GB") -> None:
    """Write `vqvae` in the layout of BAAI/Emu3-VisionTokenizer: config.json and safetensors, whole or not at all.

    max_shard_size: bytes, or text such as "5GB"; beyond it there are several files and an index.
    """
    theirs = {ours: name for name, ours in BAAI_FIELDS.items()}
    fields = {theirs.get(name, name): getattr(vqvae.config, name) for name in PUBLISHED if name not in NOT_IN_BAAI}
    tensors = {
        baai_name(name): tensor[:, :, None, None] if name.endswith("_proj.weight") else tensor
        for name, tensor in vqvae.state_dict().items()
    }
    with whole_folder(Path(folder)) as temporary:
        save_torch_state_dict(tensors, temporary, max_shard_size=max_shard_size)
        write_json(temporary / CONFIG_FILE, {"model_type": BAAI_MODEL_TYPE, **fields})
