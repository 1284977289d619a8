"""Images and instructions in, edited images out.

source -> scaled to the area -> codes -> prompt -> sampled codes -> image. The edited image has the scaled source's
size in whole cells (`fit_image`). All requests are checked before the first is sampled, so that a bad image costs
no computing time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import Emu3ForCausalLM

from emu3.checkpoint_facts import DEFAULT_AREA, setup_of
from emu3.errors import UserError
from emu3.hub import SMALL_FILES, local_folder
from emu3.mllm.generate import Completion, Request, check_fits, check_settings, generate
from emu3.mllm.language_model import CONVERTED, load_for_editing, load_language_model, read_config
from emu3.mllm.layout import THINK_TOKENS
from emu3.mllm.sequence import THINK_END, THINK_PREFILL, edit_prompt, grid_grammar
from emu3.mllm.small_memory import Quantization
from emu3.mllm.text_tokenizer import RANK_FILE, TOKENIZER_FILE, TextTokenizer
from emu3.mllm.vllm.llm_engine import check_installed
from emu3.mllm.vllm.sampler import VllmSampler, sampler_of
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.images import scale_image
from emu3.tokenizer.model import StillVQ

BAR = "{desc} {n:.1f} of {total:.0f} images |{bar}| {elapsed}, {remaining} left"

# Bounds the key-value cache: at most about 13 GB for the 8B model at 32x32 codes. Fewer that think, each of which may
# have THINK_TOKENS more.
SAMPLES_AT_ONCE = 64
TOKENS_OF_A_SAMPLE = 1024

# Where the published checkpoints that lack a part have it from.
TOKENIZER = "BAAI/Emu3-Gen"
VISION_TOKENIZER = "BAAI/Emu3-VisionTokenizer"


@dataclass(frozen=True)
class EditedImage:
    """One edited image, and the chain of thought before it: None without `think`, empty where the model was to decide
    and wrote none. cut: whether it came to its end because it had `think_tokens`, or the model no room."""

    image: Image.Image
    reasoning: str | None
    cut: bool = False


Ready = Callable[[int, list[EditedImage]], None]
"""Called with the index and the edits of each image in order, as soon as they are there."""


Think = bool | Literal["mixed"]
"""Whether a chain of thought comes first; mixed: the model decides, as the published mode of that name has it."""


class Editor:
    """A language model, its text tokenizer and a vision tokenizer at work together.

    start: makes a vLLM engine that holds the model's weights and samples in its place. That takes a minute and most of
    the device, so it is called when the first requests have been found to be right. None samples with the model.
    image_area, think_tokens: pixels of a scaled source, and most tokens of a chain of thought, where `edit` is not
    given others. Raises UserError if the three disagree about the number of visual codes or token ids.
    """

    def __init__(
        self,
        model: Emu3ForCausalLM,
        tokenizer: TextTokenizer,
        codec: ImageCodec,
        start: Callable[[], VllmSampler] | None = None,
        image_area: int = DEFAULT_AREA,
        think_tokens: int = THINK_TOKENS,
    ) -> None:
        self.model = model
        self.image_area = image_area
        self.think_tokens = think_tokens
        self._start = start
        self._sampler: VllmSampler | None = None
        self.tokenizer = tokenizer
        self.codec = codec
        layout = tokenizer.layout
        if model.config.vocab_size != layout.vocab_size:
            raise UserError(f"the model has {model.config.vocab_size} token ids, its tokenizer {layout.vocab_size}")
        if codec.vq.config.codebook_size != layout.codebook_size:
            raise UserError(
                f"the vision tokenizer has {codec.vq.config.codebook_size} codes, the model's text tokenizer counts "
                f"{layout.codebook_size}: they do not belong together"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: Path | str,
        vision: Path | str | None = None,
        tokenizer: Path | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        engine: Literal["local", "vllm"] = "local",
        image_area: int | None = None,
        quantization: Quantization | None = None,
        device_map: Literal["auto"] | None = None,
    ) -> Self:
        """Load a language model, a vision tokenizer and a text tokenizer, each from a folder or by its Hub id.

        vision: None takes the one that `model` names (`emu3.checkpoint_facts`) or that is inside it, as in a converted
        `Emu3ForConditionalGeneration`. image_area: None takes what `model` was trained at, where it says so.
        tokenizer: None takes the files beside the weights of `model`, which fine-tuned checkpoints often lack.
        device: the first GPU if there is one, else the CPU. dtype: of the language model; None is bfloat16 on a GPU and
        on a CPU that computes in it where the weights are stored so, float32 elsewhere; the vision tokenizer is always
        float32. engine: what samples, the model itself or vLLM with its weights. quantization: 8 or 4 bits per weight
        of the layers (`emu3.mllm.small_memory`); a checkpoint that is stored quantized needs none. device_map: "auto"
        keeps layers that do not fit on the device in main memory, which is slow.

        Raises UserError if a part is missing or not what it should be, if device or engine cannot be used, or if the
        weights are larger than the free memory, with the settings that fit.
        """
        device = _usable_device(device)
        if engine == "vllm":
            check_installed()
            if quantization is not None or device_map is not None:
                raise UserError("--quantization and --device-map are of --engine local, not of vllm")
        # Whatever may be wrong is found before the weights of the language model are fetched and read.
        folder = local_folder(model, SMALL_FILES)
        model_type = read_config(folder / "config.json").model_type
        if tokenizer is None and not any((folder / name).is_file() for name in (RANK_FILE, TOKENIZER_FILE)):
            raise UserError(f"{model} holds no text tokenizer: name one as `tokenizer`, such as {TOKENIZER}")
        setup = setup_of(model, vision, image_area)
        if setup.vision is None and model_type != CONVERTED:
            raise UserError(f"{model} holds no vision tokenizer: name one as `vision`, such as {VISION_TOKENIZER}")
        text_tokenizer = TextTokenizer.from_pretrained(folder if tokenizer is None else tokenizer)
        vq = StillVQ.from_pretrained(setup.vision or model, dtype=torch.float32)
        if engine == "vllm":
            dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
            language_model = load_language_model(model, dtype)
            start = partial(sampler_of, language_model, SAMPLES_AT_ONCE, device)
            return cls(language_model, text_tokenizer, ImageCodec(vq, device), start, setup.image_area)
        language_model = load_for_editing(model, device, dtype, quantization, device_map)
        return cls(language_model, text_tokenizer, ImageCodec(vq, device), image_area=setup.image_area)

    @overload
    def edit(
        self,
        images: Image.Image,
        instructions: str,
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int | None = 2048,
        seed: int = 0,
        think: Think = False,
        think_tokens: int | None = None,
        image_area: int | None = None,
        progress: bool = False,
        ready: Ready | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[EditedImage]: ...

    @overload
    def edit(
        self,
        images: Sequence[Image.Image],
        instructions: str | Sequence[str],
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int | None = 2048,
        seed: int = 0,
        think: Think = False,
        think_tokens: int | None = None,
        image_area: int | None = None,
        progress: bool = False,
        ready: Ready | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[EditedImage]]: ...

    def edit(
        self,
        images: Image.Image | Sequence[Image.Image],
        instructions: str | Sequence[str],
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int | None = 2048,
        seed: int = 0,
        think: Think = False,
        think_tokens: int | None = None,
        image_area: int | None = None,
        progress: bool = False,
        ready: Ready | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[EditedImage] | list[list[EditedImage]]:
        """`n` edits of an image, or of each of several, by the instruction of the same index or by one for all.

        temperature: 0 is greedy. top_k: None draws among all codes. think: write a chain of thought first, of at most
        `think_tokens` (the editor's own if None), or of what the model's positions leave; "mixed" lets the model decide
        whether to. image_area: pixels of the scaled source, the editor's own if None. progress: show a bar on a
        terminal, but for vLLM. numbers: of the images, None counts from 0. Sample s of image i depends on (seed, i, s),
        the image, the instruction and the settings, not on the other images. Returns the edits of the one image, or a
        list of them for each of several.

        Raises ValueError if there are not as many instructions as images, and UserError, naming the image's index,
        for an unreadable or too thin image, an empty instruction, or a prompt that does not fit the model.
        """
        single = isinstance(images, Image.Image)
        images = [images] if isinstance(images, Image.Image) else images
        instructions = [instructions] * len(images) if isinstance(instructions, str) else instructions
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} images and {len(instructions)} instructions")
        area = self.image_area if image_area is None else image_area
        think_tokens = self.think_tokens if think_tokens is None else think_tokens
        if n < 1 or seed < 0 or area < 1:
            raise UserError(f"n and image area must be 1 or more and seed 0 or more, got {n}, {area}, {seed}")
        check_settings(temperature, top_k, think_tokens)
        numbers = range(len(images)) if numbers is None else numbers
        requests = self._requests(images, instructions, n, seed, think, area, numbers)
        edits: list[list[EditedImage]] = []
        longer = 1 + think_tokens // TOKENS_OF_A_SAMPLE if think and self._start is None else 1
        at_once = max(1, SAMPLES_AT_ONCE // longer // n)
        with token_bar(self.model, requests) if progress and self._start is None else nullcontext():
            for start in range(0, len(requests), at_once):
                groups = self._sample(requests[start : start + at_once], temperature, top_k, think_tokens)
                decoded = iter(self.codec.decode([sample.codes for group in groups for sample in group]))
                for group in groups:
                    edits.append([EditedImage(next(decoded), self._text(s.reasoning), s.cut) for s in group])
                    if ready is not None:
                        ready(len(edits) - 1, edits[-1])
        return edits[0] if single else edits

    def _sample(
        self, requests: Sequence[Request], temperature: float, top_k: int | None, think_tokens: int
    ) -> list[list[Completion]]:
        settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "think_tokens": think_tokens}
        if self._start is not None:
            self._sampler = self._sampler or self._start()
            return list(self._sampler.sample(requests, **settings))
        return generate(self.model, self.tokenizer.layout, requests, **settings)

    def _requests(
        self,
        images: Sequence[Image.Image],
        instructions: Sequence[str],
        n: int,
        seed: int,
        think: Think,
        area: int,
        numbers: Sequence[int],
    ) -> list[Request]:
        for index, instruction in enumerate(instructions):
            if not instruction.strip():
                raise UserError(f"image {index}: the instruction is empty")
        scaled = [self._scale(image, area, f"image {index}") for index, image in enumerate(images)]
        prefill = self.tokenizer.encode(THINK_PREFILL) if think is True else []
        requests = []
        for index, (codes, instruction) in enumerate(zip(self.codec.encode(scaled), instructions, strict=True)):
            prompt = (*edit_prompt(self.tokenizer, codes, instruction), *prefill)
            seeds = tuple((seed, numbers[index], sample) for sample in range(n))
            requests.append(Request(prompt, grid_grammar(self.tokenizer, *codes.shape), seeds, bool(think)))
            check_fits(self.model.config.max_position_embeddings, requests[-1], f"image {index}")
        return requests

    def _scale(self, image: Image.Image, area: int, name: str) -> Image.Image:
        try:
            image.load()
        except Exception as error:  # a file opened before is read only now, and decoders raise nearly anything
            raise UserError(f"{name} cannot be read: {error}") from error
        try:
            return scale_image(image, area, self.codec.factor)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error

    def _text(self, reasoning: list[int] | None) -> str | None:
        if reasoning is None:
            return None
        return self.tokenizer.decode(reasoning).removeprefix(THINK_PREFILL).removesuffix(THINK_END).strip()


def _usable_device(device: torch.device | str | None) -> torch.device:
    try:
        usable = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise UserError(f"device {device!s} cannot be used: {str(error).splitlines()[0]}") from error
    if usable.type == "mps":
        print("note: nobody has tested the device mps; its random numbers are drawn in float32", file=sys.stderr)
    return usable


@contextmanager
def token_bar(model: Emu3ForCausalLM, requests: Sequence[Request]) -> Iterator[tqdm]:
    """Show a bar while `requests` are answered within, on a terminal only.

    It counts the tokens behind the prompts, those of all samples together, and shows them as images. How long a chain
    of thought will be is not known before: with one the bar has no end, and shows tokens.
    """
    total = None if any(request.think for request in requests) else sum(map(_fed_tokens, requests))
    shown: dict[str, Any] = {"unit": " tokens"}
    if total:
        shown = {"unit_scale": len(requests) / total, "bar_format": BAR}
    with tqdm(total=total, desc="editing", disable=None, leave=False, **shown) as bar:

        def count(trunk: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if keywords["past_key_values"].get_seq_length() > 0:  # else it is the prompt's pass
                bar.update(keywords["input_ids"].numel())

        handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield bar
        finally:
            handle.remove()


def _fed_tokens(request: Request) -> int:
    """Tokens that the model is fed for all samples: from the first code up to the one before the last."""
    free = request.grammar.free_offsets()
    return len(request.seeds) * (free[-1] - free[0])
