"""Models in 8 and 4 bits, spread over devices, and the count of what they take."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.errors import UserError
from emu3.mllm import head, small_memory
from emu3.mllm import language_model as loading
from emu3.mllm.editor import Editor
from emu3.mllm.generate import Request, generate
from emu3.mllm.language_model import load_for_editing, load_language_model, new_language_model, save_checkpoint
from emu3.mllm.sequence import edit_prompt, grid_grammar
from emu3.mllm.small_memory import QUANTIZATIONS, spread_layers, suited_dtype, weight_bytes
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks

CPU = torch.device("cpu")
CODES = 16
BOTH = pytest.mark.parametrize("quantization", QUANTIZATIONS)

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers whose widths suit 4 bits."""
    folder = tmp_path_factory.mktemp("wide")
    train_ranks(["make the sky purple"], 256, folder / "ranks.tiktoken")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks.tiktoken", CODES)
    model = new_language_model(
        tokenizer.layout, hidden_size=128, layers=2, heads=4, kv_heads=2, ffn_size=192, max_positions=256, seed=0
    )
    save_checkpoint(model, tokenizer, folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def quantized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with the checkpoint as transformers stores it in 8 or 4 bits."""

    def stored(quantization: str) -> Path:
        place = tmp_path_factory.getbasetemp() / f"stored-{quantization}"
        if not place.exists():
            load_for_editing(folder, CPU, torch.float32, quantization, None).save_pretrained(place)  # type: ignore[arg-type]
            TextTokenizer.from_pretrained(folder).save_pretrained(place)
        return place

    return stored


def hidden(model: Emu3ForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.model(torch.arange(40)[None] % 200).last_hidden_state.float()


def held_bytes(model: Emu3ForCausalLM) -> int:
    """Of the model as it lies in memory, from the quantizer's own tensors."""
    total = 0
    for weight in model.parameters():
        total += weight.numel() * weight.element_size()
        if (state := getattr(weight, "quant_state", None)) is not None:
            total += sum(part.numel() * part.element_size() for part in (state.absmax, state.code))
        if (scales := getattr(weight, "SCB", None)) is not None:
            total += scales.numel() * scales.element_size()
    return total


@BOTH
def test_counted_bytes_are_the_quantizer_s(folder: Path, quantization: str) -> None:
    """Guards what the check before loading and the table of the README say of the 8B model."""
    model = load_for_editing(folder, CPU, torch.bfloat16, quantization, None)  # type: ignore[arg-type]
    shapes = loading.StoredModel.of(folder).config.shapes
    counted = weight_bytes(shapes, torch.bfloat16, quantization)  # type: ignore[arg-type]
    assert counted - held_bytes(model) in range(64)  # names of formats, a byte for each weight in 8 bits
    assert counted < 0.75 * weight_bytes(shapes, torch.bfloat16, None)


@BOTH
def test_quantized_weights_are_near_the_whole_ones(folder: Path, quantization: str) -> None:
    """8 bits have 1/127 of the largest weight as their step, NF4 up to 0.15 of it; and what is left whole is whole."""
    whole = load_language_model(folder)
    model = load_for_editing(folder, CPU, torch.float32, quantization, None)  # type: ignore[arg-type]
    error = (hidden(model) - hidden(whole)).norm() / hidden(whole).norm()
    assert 0 < error < (0.02 if quantization == "8bit" else 0.2)
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)


@BOTH
def test_a_checkpoint_that_is_stored_quantized(
    folder: Path, quantized: Callable[[str], Path], quantization: str
) -> None:
    stored = quantized(quantization)
    model = load_for_editing(stored, CPU, torch.float32, None, None)
    expected = load_for_editing(folder, CPU, torch.float32, quantization, None)  # type: ignore[arg-type]
    assert torch.equal(hidden(model), hidden(expected))
    with pytest.raises(UserError, match="is stored quantized: it edits, and cannot be trained or exported"):
        load_language_model(stored)
    other = {"8bit": "4bit", "4bit": "8bit"}[quantization]
    with pytest.raises(UserError, match=f"is stored in {quantization}: it cannot be loaded in {other}"):
        load_for_editing(stored, CPU, None, other, None)  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "kind"])
def test_every_quantized_tensor_is_accounted_for(
    quantized: Callable[[str], Path], tmp_path: Path, quantization: str, fault: str
) -> None:
    """Guards scales that are not there, of which a quantizer makes others or none."""
    tensors = load_file(quantized(quantization) / "model.safetensors")
    scales = next(name for name in tensors if name.endswith(("SCB", "absmax")))
    if fault == "missing":
        del tensors[scales]
    elif fault == "unexpected":
        tensors[f"{scales}_too"] = torch.zeros(2)
    else:
        tensors[scales] = tensors[scales][1:] if fault == "shape" else tensors[scales].double()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((quantized(quantization) / "config.json").read_text())
    told = {"shape": "of another shape", "kind": "of another kind of number"}.get(fault, fault)
    with pytest.raises(UserError, match=f"1 {told} \\(first: "):
        load_for_editing(tmp_path, CPU, torch.float32, None, None)


def test_other_quantizers_are_refused(folder: Path, tmp_path: Path) -> None:
    """Some of them fetch code."""
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match="weights quantized by 'gptq' are not read"):
        load_language_model(tmp_path)


def test_no_kernels_are_fetched(tmp_path: Path) -> None:
    """Guards against code from the Hub: bitsandbytes asks the package `kernels` for it where that is installed."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('fetched')")
    code = "from emu3.mllm.small_memory import quantizer_of; import torch; quantizer_of('4bit', torch.bfloat16)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_does_not_fit_is_told_before_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, eight, four = (
        weight_bytes(loading.StoredModel.of(folder).config.shapes, torch.float32, setting)
        for setting in (None, *QUANTIZATIONS)
    )
    monkeypatch.setattr(loading.StoredModel, "load", lambda *_, **settings: pytest.fail("weights were read"))
    for free, quantization, told in (
        (whole - 1, None, "--quantization 8bit takes .*, --quantization 4bit takes "),
        (eight - 1, None, "are free on cpu: --quantization 4bit takes "),
        (eight - 1, "8bit", "in 8bit need .* GB, .* are free on cpu: --quantization 4bit takes "),
        (four - 1, "4bit", "no setting fits, a smaller model might"),
    ):
        monkeypatch.setattr(small_memory, "main_memory", lambda free=free: (0, free))
        with pytest.raises(UserError, match=told):
            load_for_editing(folder, CPU, torch.float32, quantization, None)  # type: ignore[arg-type]


def test_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 GB, and the sentence that a person with 12 GB reads."""
    with torch.device("meta"):
        shapes = {name: list(one.shape) for name, one in Emu3ForCausalLM(Emu3TextConfig()).state_dict().items()}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12 * 10**9, 16 * 10**9))
    with pytest.raises(UserError) as told:
        small_memory.check_room("M", shapes, torch.bfloat16, None, torch.device("cuda:0"))
    assert str(told.value) == (
        "the weights of M in bfloat16 need 17.0 GB, 12.0 are free on cuda:0: --quantization 8bit takes 10.0, "
        "--quantization 4bit takes 7.0, --device-map auto keeps layers in main memory"
    )
    on_gpu = spread_layers(shapes, torch.bfloat16, torch.device("cuda:0"), 12 * 10**9)
    assert on_gpu["lm_head"] == on_gpu["model.layers.0"] == "cuda:0" and on_gpu["model.layers.31"] == "cpu"
    placed = {name: shape for name, shape in shapes.items() if on_gpu[_part(name)] != "cpu"}
    assert 10.3e9 < weight_bytes(placed, torch.bfloat16, None) <= 10.8e9


def _part(name: str) -> str:
    return ".".join(name.split(".")[:3]) if name.startswith("model.layers.") else name.removesuffix(".weight")


def test_layers_that_wait_elsewhere_change_nothing(
    folder: Path, tiny_vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the head, which sampling reads itself: accelerate's hooks bring back only what is called. On a machine
    without a GPU the layer waits on the disk."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    editor = Editor.from_pretrained(folder, tiny_vision_folder, device="cpu", image_area=576)
    before = editor.edit(image, "a")[0].image.tobytes()
    shapes = loading.StoredModel.of(folder).config.shapes
    free = int(1.25 * weight_bytes({n: s for n, s in shapes.items() if "layers.1." not in n}, torch.float32, None))
    device_map = spread_layers(shapes, torch.float32, torch.device("cuda"), free)
    places = {part: "disk" if place == "cpu" else "cpu" for part, place in device_map.items()}
    assert [part for part, place in places.items() if place == "disk"] == ["model.layers.1"]
    editor.model = dispatch_model(editor.model, places, main_device="cpu", offload_dir=tmp_path)
    assert next(editor.model.model.layers[1].parameters()).device.type == "meta"
    assert editor.edit(image, "a")[0].image.tobytes() == before

    # And that is the map with which it is loaded.
    given: list[object] = []
    monkeypatch.setattr(loading.StoredModel, "load", lambda *_, **settings: given.append(settings["device_map"]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    load_for_editing(folder, torch.device("cuda"), torch.float32, None, "auto")
    assert given == [device_map]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quantization": "4bit", "engine": "vllm"}, "of --engine local, not of vllm"),
        ({"quantization": "4bit", "device_map": "auto"}, "--quantization or --device-map, not both"),
    ],
)
def test_settings_that_exclude_each_other(
    folder: Path, tiny_vision_folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], told: str
) -> None:
    monkeypatch.setattr("emu3.mllm.editor.check_installed", lambda: None)
    with pytest.raises(UserError, match=told):
        Editor.from_pretrained(folder, tiny_vision_folder, device="cpu", **settings)  # type: ignore[arg-type]


def test_widths_that_do_not_suit_four_bits(tiny_model_folder: Path) -> None:
    with pytest.raises(UserError, match=r"4bit needs widths that are multiples of 64, model.layers.0"):
        load_for_editing(tiny_model_folder, CPU, None, "4bit", None)


def test_bfloat16_on_a_cpu_that_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards 34 GB where 17 do, and float32 checkpoints, whose results would change from machine to machine."""
    for able, stored, expected in (
        ({"avx512_bf16": True}, {"BF16"}, torch.bfloat16),
        ({"avx512_bf16": True}, {"F32"}, torch.float32),
        ({"avx512_bf16": False}, {"BF16"}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert suited_dtype(CPU, stored) == expected
    assert suited_dtype(torch.device("cuda"), {"F32"}) == torch.bfloat16


def test_draws_in_float32(folder: Path, tiny_vision_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device without float64: no number of it is made, and the draws are the same but where they round."""
    editor = Editor.from_pretrained(folder, tiny_vision_folder, device="cpu", image_area=576)
    [codes] = editor.codec.encode([Image.new("RGB", (24, 24), "red")])
    prompt = tuple(edit_prompt(editor.tokenizer, codes, "a"))
    request = Request(prompt, grid_grammar(editor.tokenizer, 3, 3), tuple((0, sample) for sample in range(8)))
    [before] = generate(editor.model, editor.tokenizer.layout, [request])
    monkeypatch.setattr(head, "draw_dtype", lambda device: torch.float32)
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: pytest.fail("float64"))
    [after] = generate(editor.model, editor.tokenizer.layout, [request])
    equal = np.mean([one.codes == other.codes for one, other in zip(before, after, strict=True)])
    assert equal > 0.9 and after[0].logprobs.dtype == np.float32
    nearly = head.draws_on(CPU, np.array([1 - 2**-53]))
    assert nearly.dtype == torch.float32 and nearly < 1


def test_libraries_say_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """bitsandbytes has a line for each product that it casts."""
    with caplog.at_level(logging.WARNING):
        hidden(load_for_editing(folder, CPU, torch.bfloat16, "8bit", None))
    assert not caplog.records and capfd.readouterr().err == ""
