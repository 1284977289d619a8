"""Train a small vision tokenizer from images in Parquet files.

    python -m emu3.tokenizer.train --data images.parquet --image-key input --output-dir vision

The published tokenizer is only ever loaded; this is for worlds small enough to train their own in a minute. Three
phases share one loop: an autoencoder without codes for the first third; then codes, started by k-means++ on latents
and moved as running means of what they stand for (van den Oord et al. 2017, Appendix A.1), with codes that nobody uses
put back where the error is; the encoder gets the decoder's gradient straight through. At the end codes that decode
to the same patch become one: codes that differ by nothing but noise are a coin toss that a language model can never
learn. No GAN or perceptual loss.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from emu3.errors import UserError, run_main
from emu3.files import reading_parquet
from emu3.flags import CommandParser
from emu3.settings import COUNT, SEED, number_in
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.codec import to_tensor
from emu3.tokenizer.images import read_image
from emu3.tokenizer.model import StillVQ
from emu3.train_image_editing.image_rows import BadRow, image_bytes

AUTOENCODER_SHARE = 0.3
COMMITMENT = 0.25
MEAN_DECAY = 0.98
SAME_PATCH = 16.0  # largest difference, in 8-bit steps of any channel, of two patches that count as one
RESTART_EVERY = 50  # steps between two looks for codes that nobody uses

TINY = StillVQConfig(
    base_channels=128,
    channel_multiplier=(1,),
    num_res_blocks=0,
    attn_resolutions=(),
    embed_dim=8,
    codebook_size=512,
    temporal_downsample_factor=1,
    patch_size=8,
    kernel_size=1,
    norm="position",
    middle_attention=False,
    unit_codes=True,
)


@dataclass(frozen=True)
class TrainSpec:
    """steps of `batch_size` images; learning rate falls from `learning_rate` to a tenth along a cosine."""

    steps: int = 1800
    batch_size: int = 16
    learning_rate: float = 3e-3
    seed: int = 0


def train(images: Tensor, config: StillVQConfig, spec: TrainSpec) -> StillVQ:
    """Train on `images`, float (N, 3, H, W) in [-1, 1]; the same arguments give the same weights on one machine.

    The codebook of the result may be smaller than that of `config`, see `without_equal_codes`. Seeds torch's generator.
    """
    torch.manual_seed(spec.seed)
    model = StillVQ(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), fused=True)
    codes = RunningCodes(model)
    begin_codes = int(AUTOENCODER_SHARE * spec.steps)
    for step in tqdm(range(spec.steps), desc="tokenizer", unit="step", mininterval=5):
        batch = images[torch.randint(len(images), (spec.batch_size,))]
        # 1. after the first phase latents are replaced by their codes; the gradient passes straight through
        if step == begin_codes:
            codes.start(images)
        latents = model.latents(batch)
        loss = torch.zeros(())
        if step >= begin_codes:
            nearest = codes.update(latents.detach(), restart=step % RESTART_EVERY == 0)
            loss = COMMITMENT * F.mse_loss(latents, nearest) * config.embed_dim
            latents = latents + (nearest - latents).detach()
        # 2. reconstruction
        loss = loss + F.mse_loss(model.decode_latents(latents), batch)
        # 3. learning rate: a cosine down to a tenth
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * step / spec.steps)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return without_equal_codes(model.eval(), codes.uses)


class RunningCodes:
    """The codebook as running means of the latents that chose each code."""

    def __init__(self, model: StillVQ) -> None:
        self.model = model
        self.codebook = model.quantizer.codebook
        self.uses = torch.ones(len(self.codebook))
        self.sums = self.codebook.clone()

    def start(self, images: Tensor) -> None:
        """Spread the codes over the latents of a few hundred images by k-means++."""
        with torch.no_grad():
            sample = torch.cat([_rows(self.model.latents(part)) for part in images[:1024].split(64)])
        chosen = sample[torch.randint(len(sample), (1,))]
        distance = ((sample - chosen) ** 2).sum(1)
        for _ in range(len(self.codebook) - 1):
            pick = torch.multinomial(distance + 1e-12, 1)
            chosen = torch.cat([chosen, sample[pick]])
            distance = torch.minimum(distance, ((sample - sample[pick]) ** 2).sum(1))
        self.uses.fill_(1.0)
        self.sums.copy_(chosen)
        self.codebook.copy_(chosen)

    def update(self, latents: Tensor, restart: bool) -> Tensor:
        """Move the codes towards `latents` (B, D, h, w) and return each latent's code, same shape."""
        rows = _rows(latents)
        chosen = self.model.quantizer(latents)
        uses = torch.bincount(chosen.flatten(), minlength=len(self.codebook)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen.flatten(), rows)
        self.uses.mul_(MEAN_DECAY).add_(uses, alpha=1 - MEAN_DECAY)
        self.sums.mul_(MEAN_DECAY).add_(sums, alpha=1 - MEAN_DECAY)
        if restart and (dead := (self.uses < 0.01).nonzero()[:, 0]).numel():
            # On latents in proportion to their error: most latents are alike, and more codes for those help nobody.
            error = (rows - _rows(self.model.quantizer.lookup(chosen))).square().sum(1)
            self.sums[dead] = rows[torch.multinomial(error + 1e-12, len(dead), replacement=True)]
            self.uses[dead] = 1.0
        self.codebook.copy_(self.sums / self.uses.clamp(min=1e-6)[:, None])
        return self.model.quantizer.lookup(chosen)


@torch.no_grad()
def without_equal_codes(model: StillVQ, uses: Tensor) -> StillVQ:
    """The model with one code in place of several that decode alike, and a codebook of that size.

    uses: how often each code is used, (K,). Only for cells that do not see each other (kernel size 1).
    """
    patches = model.decode(torch.arange(len(uses))[:, None, None]).flatten(1)
    kept: list[int] = []
    for code in uses.argsort(descending=True).tolist():
        if not kept or (patches[kept] - patches[code]).abs().amax(1).min() * 127.5 > SAME_PATCH:
            kept.append(code)
    state = {**model.state_dict(), "quantizer.codebook": model.quantizer.codebook[kept]}
    return StillVQ.from_state(replace(model.config, codebook_size=len(kept)), state).eval()


def _rows(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 1).flatten(0, 2).float()


def psnr(model: StillVQ, images: Tensor) -> float:
    """Peak signal to noise ratio in dB of images (N, 3, H, W) after encode and decode; 1.0 is the peak of [0, 1]."""
    errors = [((model.decode(model.encode(part)) - part) / 2).square().sum() for part in images.split(64)]
    return float(-10 * torch.log10(torch.stack(errors).sum() / images.numel()))


def read_images(files: list[Path], keys: list[str], limit: int, factor: int) -> Tensor:
    """Up to `limit` images from the columns `keys` of Parquet files, shuffled, float (N, 3, H, W) in [-1, 1].

    Raises UserError for a file that is missing or no Parquet, a missing column, a cell without a readable image, and
    unless there are at least two images, all of one size that `factor` divides.
    """
    images: list[Image.Image] = []
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist")
        with reading_parquet(file):
            table = pq.read_table(file)
        for key in keys:
            if key not in table.column_names:
                raise UserError(f"{file} has no column {key!r}; it has {', '.join(table.column_names)}")
            for row, cell in enumerate(table[key].to_pylist()):
                name = f"{file}, row {row}, {key}"
                try:
                    images.append(read_image(io.BytesIO(image_bytes(cell, name)), name))
                except BadRow as error:
                    raise UserError(str(error)) from None
    sizes = sorted({image.size for image in images})
    if len(images) < 2 or len(sizes) != 1 or any(side % factor for side in sizes[0]):
        raise UserError(
            f"{', '.join(map(str, files))}: expected two images or more, all of one size, in multiples of "
            f"{factor} pixels; there are {len(images)} of sizes {sizes[:3]}"
        )
    order = np.random.default_rng(0).permutation(len(images))[:limit]
    return to_tensor([images[i] for i in order])


def main() -> None:
    default = TrainSpec()
    parser = CommandParser(old={"--output-dir": "--output"}, description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="Parquet files with image columns")
    parser.add_argument("--image-key", nargs="+", default=["input"], help="image columns (default: input)")
    parser.add_argument("--output", dest="output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--limit", type=COUNT, default=8000, help="images to train on at most (default 8000)")
    parser.add_argument("--steps", type=COUNT, default=default.steps)
    parser.add_argument("--batch-size", type=COUNT, default=default.batch_size, help="images in a step")
    parser.add_argument("--learning-rate", type=number_in(float, above=0, most=1e6), default=default.learning_rate)
    parser.add_argument("--seed", type=SEED, default=default.seed)
    options = parser.parse_args()
    if min(options.limit - 1, options.steps, options.batch_size) < 1 or options.seed < 0:
        raise UserError("--limit must be at least 2, --steps and --batch-size 1, --seed 0")
    images = read_images(options.data, options.image_key, options.limit, TINY.factor)
    held_out = max(1, min(256, len(images) // 10))
    spec = TrainSpec(options.steps, options.batch_size, options.learning_rate, options.seed)
    model = train(images[held_out:], TINY, spec)
    quality = f"{psnr(model, images[:held_out]):.1f} dB on {held_out} images that it has not seen"
    print(f"tokenizer: {model.config.codebook_size} codes, {quality}")
    model.save_pretrained(options.output_dir)


if __name__ == "__main__":
    run_main(main)
