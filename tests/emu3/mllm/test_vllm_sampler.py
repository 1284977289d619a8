"""vLLM against transformers: the same weights, the same grammar, the same distribution, whatever runs beside it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from vllm_world import LARGE, LAYOUT, SMALL, teacher_forced, world_model, world_request

from emu3.errors import UserError
from emu3.mllm.editor import Editor
from emu3.mllm.generate import Completion, generate
from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.mllm.vllm.llm_engine import CPU_BLOCK, VllmSettings, start_engine
from emu3.mllm.vllm.sampler import Preemptions, VllmSampler, named_weights, sampler_of

CPU = torch.device("cpu")
MIXED = [
    world_request(0, 3),
    world_request(1, 2, LARGE, think=True),
    world_request(2, 2, LARGE, length=5),
    world_request(3, 4, SMALL, think=True, length=33),
]


@pytest.fixture(scope="module")
def sampler() -> VllmSampler:
    """Fewer places than requests, so that some wait and take others' rows. The fixture below gives it its weights."""
    return VllmSampler(world_model().config, VllmSettings(torch.float32, max_sequences=5, sleep=True), CPU)


@pytest.fixture(autouse=True)
def loaded(sampler: VllmSampler) -> None:
    sampler.load(named_weights(world_model()))


def tokens(groups: Iterator[list[Completion]]) -> list[list[list[int]]]:
    return [[sample.tokens for sample in group] for group in groups]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_model(sampler: VllmSampler, temperature: float) -> None:
    """float32 on both sides: sums in another order move a log-probability by some 1e-5."""
    model = world_model()
    for request, group in zip(MIXED, sampler.sample(MIXED, temperature=temperature, think_tokens=6), strict=True):
        assert len(group) == len(request.seeds)
        for sample in group:
            expected = teacher_forced(model, request, sample, temperature, 6)
            np.testing.assert_allclose(sample.logprobs, expected, rtol=0, atol=1e-4)
            assert (sample.logprobs[expected.numpy() == 0] == 0).all()
            assert sample.codes.shape == (request.grammar.height, request.grammar.width)
            completion = sample.tokens[-request.grammar.length :]
            assert sample.codes.tolist() == request.grammar.codes(completion)
            thought = sample.tokens[: -request.grammar.length - 1]
            assert sample.reasoning == (thought if request.think else None) and len(thought) <= 6
            assert sample.tokens[len(thought)] == LAYOUT.boi


def test_greedy_is_the_local_engines(sampler: VllmSampler) -> None:
    """Token by token: one id legal too many or too few, at any place, and another path is taken."""
    local = generate(world_model(), LAYOUT, MIXED, temperature=0, think_tokens=6)
    for ours, theirs in zip(sampler.sample(MIXED, temperature=0, think_tokens=6), local, strict=True):
        assert [sample.tokens for sample in ours] == [sample.tokens for sample in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-4)
            np.testing.assert_array_equal(one.codes, other.codes)
            assert one.reasoning == other.reasoning


def test_draws_follow_the_probabilities(sampler: VllmSampler) -> None:
    """Chi-square of 1,000 first codes against the model's own probabilities: no seed is used twice, none is biased."""
    count = 1000
    request = world_request(5, count, length=8)
    [group] = sampler.sample([request])
    counts = np.bincount([sample.codes[0, 0] for sample in group], minlength=LAYOUT.codebook_size)
    opening = [*request.prompt, *group[0].tokens[: SMALL.header_length + 1]]
    with torch.no_grad():
        logits = world_model()(torch.tensor([opening])).logits[0, -1, LAYOUT.first_code :]
    expected = count * logits.double().softmax(-1).numpy()
    usual = expected >= 5  # the rule of thumb for the statistic; the others are one class
    seen = np.append(counts[usual], counts[~usual].sum())
    wanted = np.append(expected[usual], expected[~usual].sum())
    statistic = ((seen - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
    assert statistic < len(seen) - 1 + 4 * (2 * (len(seen) - 1)) ** 0.5


def test_top_k_cuts(sampler: VllmSampler) -> None:
    greedy = tokens(sampler.sample([MIXED[0]], temperature=0))
    assert tokens(sampler.sample([MIXED[0]], top_k=1)) == greedy


def test_a_sample_is_a_function_of_its_seed(sampler: VllmSampler) -> None:
    """Neither its neighbours nor what the cache holds may reach a sample."""
    together = tokens(sampler.sample(MIXED, think_tokens=6))
    again = tokens(sampler.sample(MIXED, think_tokens=6))
    alone = [group for request in reversed(MIXED) for group in tokens(sampler.sample([request], think_tokens=6))]
    assert together == again == alone[::-1]
    assert len({tuple(sample) for group in together for sample in group}) == sum(len(r.seeds) for r in MIXED)


def test_groups_come_in_order_and_early(sampler: VllmSampler) -> None:
    """Guards the overlap with the judge, and that a caller who stops leaves nothing behind."""
    groups = sampler.sample([world_request(0, 2), world_request(1, 2, LARGE), world_request(2, 2)])
    assert next(groups)[0].codes.shape == (2, 3)
    assert sampler._engine.has_unfinished_requests()
    assert next(groups)[0].codes.shape == (6, 5)
    groups = sampler.sample([world_request(0, 2), world_request(1, 2, LARGE)])
    next(groups)
    groups.close()  # type: ignore[attr-defined]  # a generator
    assert not sampler._engine.has_unfinished_requests()
    assert len(tokens(sampler.sample([MIXED[0]]))) == 1


def test_a_groups_prompt_is_computed_once(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the prefix cache, and that new weights empty it: keys of old weights would poison every sample."""
    cached: list[int] = []
    step = sampler._engine.step

    def counting() -> Any:
        outputs = step()
        cached.extend(output.num_cached_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(sampler._engine, "step", counting)
    list(sampler.sample([world_request(0, 3)]))
    assert sorted(cached) == [0, 64, 64]  # of 75 tokens, whole blocks of 32
    sampler.load(named_weights(world_model()))
    cached.clear()
    list(sampler.sample([world_request(0, 3)]))
    assert sorted(cached) == [0, 64, 64]


def test_new_weights_sample(sampler: VllmSampler) -> None:
    """Guards the update in place: every tensor counts, packed, fused or shared, asleep in between or not."""
    for seed, sleeps in ((1, False), (2, True)):
        model = world_model(seed)
        if sleeps:
            sampler.sleep()
            with pytest.raises(RuntimeError, match="sleeps"):
                next(sampler.sample([MIXED[0]]))
        sampler.load(named_weights(model))
        [group] = sampler.sample([MIXED[0]])
        for sample in group:
            expected = teacher_forced(model, MIXED[0], sample, 1.0, 0)
            np.testing.assert_allclose(sample.logprobs, expected, rtol=0, atol=1e-4)


def share_of(blocks: int) -> float:
    """The share of this machine's memory that holds `blocks` of the cache, and the one that is vLLM's own."""
    config = world_model().config
    block = 2 * config.num_hidden_layers * config.num_key_value_heads * 32 * torch.float32.itemsize * CPU_BLOCK
    return (blocks + 1.5) * block / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def test_preemptions_are_counted_and_change_nothing(sampler: VllmSampler, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against silence: of twelve completions in a cache for two, some are interrupted and computed twice."""
    requests = [world_request(prompt, 4, LARGE, length=60) for prompt in range(3)]
    expected = tokens(sampler.sample(requests))
    assert sampler.preemptions == Preemptions(0, 0)

    crowded = VllmSampler(world_model().config, VllmSettings(torch.float32, 8, memory_share=share_of(9)), CPU)
    crowded.load(named_weights(world_model()))
    capsys.readouterr()
    for _ in range(2):
        assert tokens(crowded.sample(requests)) == expected
    assert crowded.preemptions.requests >= 2 and crowded.preemptions.tokens > 60 * crowded.preemptions.requests
    assert capsys.readouterr().err.count("vLLM's cache of 288 tokens is too small") == 1


@pytest.mark.parametrize("blocks", [100, 8])
def test_asynchronous_scheduling_gives_the_same_samples(
    sampler: VllmSampler, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs schedule a step while the last one's tokens are on their way, which vLLM does not do on CPUs by itself.
    Guards the processor, for which they are missing for a while, steps that are left over when all is sampled, the
    caller has gone, or the engine sleeps, and completions that are interrupted meanwhile (`blocks` of cache)."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.engine.llm_engine import LLMEngine

    expected = tokens(sampler.sample(MIXED, think_tokens=6))
    make = LLMEngine.from_vllm_config

    def ahead(config: Any, **options: Any) -> LLMEngine:
        config.scheduler_config.async_scheduling = True
        return make(config, **options)

    monkeypatch.setattr(LLMEngine, "from_vllm_config", ahead)
    settings = VllmSettings(torch.float32, 5, memory_share=share_of(blocks), sleep=True)
    other = VllmSampler(world_model().config, settings, CPU)
    core = other._engine.engine_core.engine_core
    assert isinstance(core.scheduler, AsyncScheduler) and core.batch_queue is not None
    other.load(named_weights(world_model()))
    assert tokens(other.sample(MIXED, think_tokens=6)) == expected
    other.sleep()
    other.load(named_weights(world_model()))
    groups = other.sample(MIXED, think_tokens=6)
    assert [sample.tokens for sample in next(groups)] == expected[0]
    groups.close()  # type: ignore[attr-defined]  # a generator
    assert core.batch_queue, "a step is on its way"
    other.load(named_weights(world_model()))
    assert tokens(other.sample(MIXED, think_tokens=6)) == expected
    assert (other.preemptions.requests > 0) == (blocks == 8)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_half_precision_are_not_rounded(tied: bool) -> None:
    """Guards vLLM's half of an equality, head_dtype: the last product's sums stay float32, also after an update of the
    weights. In bfloat16 every logit of size 1 would be a multiple of 1/128."""
    model = world_model(4, tied).to(torch.bfloat16)
    half = sampler_of(model, 4, CPU)
    worker = half._engine.model_executor.driver_worker.worker
    compute, seen = worker.model_runner.model.compute_logits, []

    def noting(hidden: torch.Tensor) -> torch.Tensor:
        logits = compute(hidden)
        seen.append((hidden, logits.clone()))
        return logits

    worker.model_runner.model.compute_logits = noting
    list(half.sample([MIXED[0]]))
    assert len(seen) > SMALL.height * SMALL.width
    for hidden, logits in seen:
        assert hidden.dtype == torch.bfloat16 and logits.dtype == torch.float32
        exact = hidden.double() @ model.lm_head.weight.detach().double().T
        torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)


def test_weights_that_diverged_are_told(sampler: VllmSampler) -> None:
    model = world_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    sampler.load(named_weights(model))
    with pytest.raises(FloatingPointError):
        list(sampler.sample([MIXED[0]]))


def test_a_second_engine_of_another_model_comes_and_goes(sampler: VllmSampler) -> None:
    """Without biases and with a head of its own. Guards the process groups, which are not the engine's alone: a trainer
    goes on with them when the engine is gone, and so does another engine."""
    model = world_model(3, tied=False)
    second = sampler_of(model, 4, CPU)
    [group] = second.sample([MIXED[1]], think_tokens=3)
    for sample in group:
        expected = teacher_forced(model, MIXED[1], sample, 1.0, 3)
        np.testing.assert_allclose(sample.logprobs, expected, rtol=0, atol=1e-4)
    del second
    gc.collect()
    assert torch.distributed.is_initialized()
    assert len(tokens(sampler.sample(MIXED))) == len(MIXED)


def test_ranks_have_engines_of_their_own(tmp_path: Path) -> None:
    """Guards the launcher's executor, which has one engine over all ranks in mind: here each samples its own requests
    with its own weights, and the process group is the trainer's before and after."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("vllm_ranks.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path])}
    done = subprocess.run([*command, script, tmp_path], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        model = world_model(rank)
        completions = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(completions) == 2 + rank
        alone = sampler_of(model, 4, CPU)
        assert completions == tokens(alone.sample([world_request(prompt, 2) for prompt in range(2 + rank)]))


def test_heads_that_cannot_run_are_named() -> None:
    model = new_language_model(
        LAYOUT, hidden_size=32, layers=1, heads=2, kv_heads=1, ffn_size=32, max_positions=64, seed=0
    )
    with pytest.raises(UserError, match="size 16 on a CPU"):
        start_engine(model.config, VllmSettings(torch.float32), CPU)


@pytest.mark.parametrize("error", [ValueError("Free memory"), torch.OutOfMemoryError("CUDA out of memory. Tried")])
def test_too_little_memory_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that others use ends in one or the other, by how far vLLM gets."""
    from vllm.v1.engine.llm_engine import LLMEngine

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(LLMEngine, "from_vllm_config", fail)
    with pytest.raises(UserError, match=f"vLLM does not start: {error}"):
        start_engine(world_model().config, VllmSettings(torch.float32), CPU)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    train_ranks(["make the sky purple"], 256, folder / "ranks")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks", 16)
    model = new_language_model(
        tokenizer.layout,
        hidden_size=64,
        layers=1,
        heads=2,
        kv_heads=1,
        ffn_size=32,
        max_positions=1024,
        initializer_range=0.2,
        seed=0,
    )
    save_checkpoint(model, tokenizer, folder / "checkpoint", max_shard_size="50KB")
    return folder / "checkpoint"


def test_a_saved_checkpoint_loads_as_it_is(checkpoint: Path) -> None:
    """By vLLM's own loader, without anything of ours but the plugin's entry point."""
    from transformers import Emu3ForCausalLM
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(checkpoint), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=2**24
    )
    assert llm.llm_engine.model_config.architecture == "Emu3ForCausalLM"
    ids = list(range(5, 300, 7))
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    [output] = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    theirs = [row[token].logprob for row, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
    with torch.no_grad():
        logits = Emu3ForCausalLM.from_pretrained(checkpoint)(torch.tensor([ids])).logits[0, :-1]
    ours = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_the_editor_on_vllm(checkpoint: Path, tiny_vision_folder: Path) -> None:
    """Greedy edits of both engines are the same images and the same thoughts."""
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    edits = []
    for engine in ("local", "vllm"):
        editor = Editor.from_pretrained(checkpoint, tiny_vision_folder, device="cpu", engine=engine)  # type: ignore[arg-type]
        arguments: dict[str, Any] = {"temperature": 0.0, "think": True, "image_area": 24 * 32, "progress": True}
        edits.append(editor.edit([image] * 2, ["a", "make it purple"], n=2, **arguments))
    for ours, theirs in zip(*edits, strict=True):
        assert [(edit.image.tobytes(), edit.reasoning) for edit in ours] == [
            (edit.image.tobytes(), edit.reasoning) for edit in theirs
        ]
