"""What the code asks of vLLM on a GPU, against the sources of the vLLM that is there; no GPU is needed.

The tests beside this one run vLLM on a CPU: the first model runner, without Triton, asynchronous scheduling and sleep.
Users have the second one, with all three. Here is what only they would find out: that a name has gone, that an argument
is called otherwise, that sleep forgets a buffer.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.config import DeviceConfig
from vllm.exceptions import VLLMValidationError
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher, UniProcExecutor
from vllm.v1.sample import logits_processor as first
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondRunner
from vllm.v1.worker.gpu.sample import logits_processor as second
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as FirstRunner
from vllm.v1.worker.gpu_worker import Worker

from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.mllm.vllm import inside
from emu3.mllm.vllm.rules import CompletionRule

HERE = Path(__file__).parent


def source_of(thing: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def calls(thing: Any, name: str) -> list[ast.Call]:
    """The calls, in the source of `thing`, of what is called `name` whatever it hangs on."""
    named = lambda call: getattr(call.func, "attr", getattr(call.func, "id", None))  # noqa: E731
    return [node for node in ast.walk(source_of(thing)) if isinstance(node, ast.Call) and named(node) == name]


@pytest.mark.parametrize(("ranks", "runner"), [(1, 2), (1, 1), (4, 2)])
def test_a_gpu_gets_the_config_that_is_meant(ranks: int, runner: int) -> None:
    """vLLM resolves our arguments for an H100: guards each field of `EngineArgs`, the processor of the right runner
    (the other one ends the start), the executor of several ranks, and sleep."""
    environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "1" if runner == 2 else "0"}
    command = [sys.executable, "vllm_on_a_gpu.py", str(ranks)]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["v2"] == (runner == 2)
    name = "FirstRunnerProcessor" if runner == 1 else "SecondRunnerProcessor"
    assert found["processors"] == [f"emu3.mllm.vllm.inside:{name}"]
    assert found["executor"] == ("UniProcExecutor" if ranks == 1 else "ExecutorWithExternalLauncher")
    assert found["device"] == ("cuda:1" if ranks == 1 else "cuda")
    assert found["sleep"] == [True, True] and found["sleep_backend"] == "cumem"
    assert found["async"], "asynchronous scheduling is what the processors and the sampler are written for"
    assert (found["dtype"], found["head"], found["logprobs"]) == (
        "torch.bfloat16",
        "torch.float32",
        "processed_logprobs",
    )
    assert (found["memory_share"], found["sequences"], found["positions"]) == (0.3, 96, 256)
    assert found["prefix_caching"] and not found["eager"] and found["options"] == {"disable_log_stats": True}


def test_the_second_runner_is_the_one_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable: nothing that we ask for is among what it does not support yet."""
    from vllm.config import VllmConfig

    parallel = SimpleNamespace(
        distributed_executor_backend="external_launcher", pipeline_parallel_size=1, use_ubatching=False
    )
    config = SimpleNamespace(parallel_config=parallel, speculative_config=None)
    assert VllmConfig._get_v2_model_runner_unsupported_features(config) == []  # type: ignore[arg-type]
    assert isinstance(VllmConfig.use_v2_model_runner, property)


@pytest.mark.parametrize(
    ("method", "positional", "named"),
    [
        (LLMEngine.add_request, ("0-0", {"prompt_token_ids": [1]}, SamplingParams()), {}),
        (LLMEngine.step, (), {}),
        (LLMEngine.abort_request, (["0-0"],), {"internal": True}),
        (LLMEngine.sleep, (), {"level": 2}),
        (LLMEngine.wake_up, (["weights"],), {}),
        (LLMEngine.reset_prefix_cache, (), {}),
        (LLMEngine.has_unfinished_requests, (), {}),
        (LLMEngine.collective_rpc, ("reload_weights",), {"kwargs": {"weights_iterator": iter(())}}),
        (Worker.reload_weights, (), {"weights_iterator": iter(())}),
        (FirstRunner.reload_weights, (), {"weights_iterator": iter(())}),
        (SecondRunner.reload_weights, (), {"weights_iterator": iter(())}),
        (Worker.sleep, (), {"level": 2}),
        (Worker.wake_up, (), {"tags": ["weights"]}),
        (Scheduler._preempt_request, (object(), 0.0), {"drop_stale_output": True}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_methods_take_what_they_are_given(
    method: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    inspect.signature(method).bind(object(), *positional, **named)


def test_preemptions_pass_where_they_are_counted() -> None:
    """Guards the counter, which stands in place of a private method: asynchronous scheduling must not have its own."""
    assert "_preempt_request" not in vars(AsyncScheduler)
    assert calls(Scheduler.schedule, "_preempt_request")
    assert "self.engine_core = EngineCore(" in inspect.getsource(InprocClient.__init__)
    assert "scheduler" in {
        target.attr
        for node in ast.walk(source_of(EngineCore.__init__))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
    }


def test_the_end_of_an_engine_can_be_left_to_the_exit() -> None:
    """`_finalizer` would end the trainer's process groups with the engine's."""
    assert "self._finalizer = weakref.finalize(self" in inspect.getsource(InprocClient.__init__)


class Asleep:
    """A sleep-mode backend that forgets: what it does not keep is overwritten, as it is on a device."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.resumed: list[Any] = []

    def suspend(self, level: int) -> None:
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            tensor.data.fill_(torch.nan)

    def resume(self, tags: list[str] | None) -> None:
        self.resumed.append(tags)


def test_sleep_keeps_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 2 gives all of the weights' memory away, rotary tables with it, and we send parameters only: the GPU worker
    has to put the buffers back, those that no checkpoint holds as well, and before the weights are loaded."""
    model = nn.Linear(2, 2)
    model.register_buffer("cos_sin_cache", torch.arange(4.0), persistent=False)
    worker = object.__new__(Worker)
    worker.model_runner = SimpleNamespace(model=model, get_draft_model=lambda: None, speculator=None)  # type: ignore
    worker.model_config = SimpleNamespace(sleep_preserve_parameter_names=None)  # type: ignore[assignment]
    worker.vllm_config = SimpleNamespace(  # type: ignore[assignment]
        model_config=SimpleNamespace(enable_nccl_comm_suspend=False)
    )
    worker._sleep_saved_parameters, worker._sleep_saved_buffers, worker._sleep_saved_draft_buffers = {}, {}, {}
    backend = worker._sleep_mode_backend = Asleep(model)  # type: ignore[assignment]
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda *_: (0, 1))
    monkeypatch.setattr(Worker, "synchronize_device", lambda self: None, raising=False)
    monkeypatch.setattr(Worker, "get_draft_model", lambda self: None, raising=False)
    worker.sleep(level=2)
    assert model.weight.isnan().all() and model.get_buffer("cos_sin_cache").isnan().all()
    worker.wake_up(["weights"])
    assert torch.equal(model.get_buffer("cos_sin_cache"), torch.arange(4.0))
    worker.wake_up(["kv_cache"])
    assert backend.resumed == [["weights"], ["kv_cache"]]


def test_sleep_gives_weights_and_cache_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 2 keeps neither in main memory, and each can be woken by itself."""
    from vllm import device_allocator
    from vllm.device_allocator.sleep_mode_backend import CuMemBackend

    kept: list[Any] = []
    allocator = SimpleNamespace(sleep=lambda offload_tags: kept.append(offload_tags), wake_up=kept.append)
    monkeypatch.setattr(device_allocator, "get_mem_allocator_instance", lambda: allocator)
    backend = CuMemBackend()
    backend.suspend(2)
    backend.resume(["weights"])
    assert not {"weights", "kv_cache"} & set(kept[0]) and kept[1] == ["weights"]
    assert {"weights", "kv_cache"} <= set(device_allocator.DEFERRABLE_TAGS)
    tags = [keyword.value for call in calls(Worker, "_maybe_get_memory_pool_context") for keyword in call.keywords]
    assert {"weights", "kv_cache"} <= {tag.value for tag in tags if isinstance(tag, ast.Constant)}


def test_halves_of_an_executor_wake_one_after_the_other() -> None:
    """Guards `wake_up(["weights"])`, new weights, `wake_up(["kv_cache"])`: scheduling goes on after the second only."""
    executor: Any = object.__new__(UniProcExecutor)
    asked: list[Any] = []
    executor.sleeping_tags = set()
    executor.collective_rpc = lambda method, kwargs: asked.append((method, kwargs))
    executor.sleep(level=2)
    executor.wake_up(["weights"])
    assert executor.is_sleeping
    executor.wake_up(["kv_cache"])
    assert not executor.is_sleeping
    assert asked == [("sleep", {"level": 2}), ("wake_up", {"tags": ["weights"]}), ("wake_up", {"tags": ["kv_cache"]})]


def test_memory_pools_and_expandable_segments() -> None:
    """rl/README.md says that they go together: the pool switches them off for itself and on again."""
    from vllm.device_allocator.cumem import CuMemAllocator

    pool = CuMemAllocator.use_memory_pool
    assert len(calls(pool, "set_alloc_conf")) == 2 and calls(pool, "conf_flag_enabled")


def test_ranks_have_a_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards where a worker goes: by its rank under a launcher, by the device's index in one process."""
    config = DeviceConfig(device="cpu")
    config.device = torch.device("cuda", 3)  # as `start_engine` does
    executor: Any = SimpleNamespace(vllm_config=SimpleNamespace(device_config=config))
    assert UniProcExecutor._distributed_args(executor)[1:] == (0, 3)
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ExecutorWithExternalLauncher._distributed_args(executor)[1:] == (5, 1)
    backend = SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend="external_launcher"))
    assert Executor.get_class(backend) is ExecutorWithExternalLauncher  # type: ignore[arg-type]


def test_the_head_of_a_gpu_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards head_dtype where it takes another way than on CPUs: no float32 copy of the head, a float32 result."""
    from vllm.model_executor.layers import logits_processor
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    monkeypatch.setattr(type(logits_processor.current_platform), "is_cuda", lambda self: True)
    with FakeTensorMode():
        hidden, weight = (torch.empty(rows, 64, dtype=torch.bfloat16, device="cuda") for rows in (5, 300))
        head = SimpleNamespace(quant_method=UnquantizedEmbeddingMethod(), weight=weight)
        processor = SimpleNamespace(head_dtype=torch.float32)
        multiply = logits_processor.LogitsProcessor._apply_head
        monkeypatch.setattr(logits_processor.F, "linear", None)  # the way of other platforms
        logits = multiply(processor, head, hidden, None)  # type: ignore[arg-type]
    assert (logits.dtype, logits.shape) == (torch.float32, (5, 300))


def test_first_runner_hands_out_what_was_drawn() -> None:
    """Guards the lists that `FirstRunnerProcessor` reads: for custom processors, and complete before they are asked."""
    [batch] = calls(FirstRunner.__init__, "InputBatch")
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in batch.keywords}
    assert keywords["logitsprocs_need_output_token_ids"] == "bool(custom_logitsprocs)"
    asked = [ast.unparse(node) for node in ast.walk(source_of(FirstRunner._sample)) if isinstance(node, ast.Call)]
    assert "self.input_batch.update_async_output_token_ids()" in asked
    assert {"removed", "added", "moved", "batch_size"} <= set(first.BatchUpdate.__dataclass_fields__)
    assert not inside.FirstRunnerProcessor.__abstractmethods__
    inspect.signature(inside.FirstRunnerProcessor).bind(vllm_config=None, device=None, is_pin_memory=False)


def test_second_runner_builds_our_processor_and_shows_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards its loader, and each buffer of its that `SecondRunnerProcessor` reads, made by its own classes."""
    from vllm.v1.worker.gpu import buffer_utils
    from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor, UvaBackedTensor
    from vllm.v1.worker.gpu.states import RequestState

    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)  # memory that a CPU does not have
    states = RequestState(4, 40, 64, 0, 30, torch.device("cpu"), use_dense_all_token_ids=True)
    assert isinstance(states.all_token_ids, StagedWriteTensor) and isinstance(states.prompt_len, UvaBackedTensor)
    assert states.all_token_ids.gpu.shape == (4, 40) and states.prompt_len.gpu.shape == (4,)
    name = "emu3.mllm.vllm.inside:SecondRunnerProcessor"
    [processor] = second.build_custom_logits_processors(None, states, False, [name])  # type: ignore[arg-type]
    assert isinstance(processor, inside.SecondRunnerProcessor) and not type(processor).__abstractmethods__
    fields = {"expanded_idx_mapping", "idx_mapping_np", "pos"}
    assert fields <= set(second.LogitsContext.__dataclass_fields__)

    rule = CompletionRule(GridGrammar(TokenLayout(12, 16), 1, 2, size_ids=(1, 9, 2)), None)
    assert processor.add_request(2, SamplingParams(extra_args=rule.arguments()))
    validate = second.build_custom_logits_processors_params_validator([name])
    validate(SamplingParams(extra_args=rule.arguments()))
    with pytest.raises(VLLMValidationError, match="emu3_completion"):
        validate(SamplingParams(extra_args={"emu3_completion": [1]}))


def test_second_runner_asks_in_the_order_that_is_meant() -> None:
    """Guards that temperature comes behind the mask, that prompts' lengths stay when a request is taken up again, and
    that log-probabilities are those of what was drawn from."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    sampling = ast.unparse(source_of(Sampler.apply_sampling_params))
    assert 0 < sampling.index("processor.apply(logits, ctx)") < sampling.index("apply_temperature(")
    assert "processed_logits" in ast.unparse(source_of(Sampler.__call__))
    [added] = calls(SecondRunner.add_requests, "add_request")[:1]
    assert {"prompt_len", "all_token_ids"} <= {keyword.arg for keyword in added.keywords}
