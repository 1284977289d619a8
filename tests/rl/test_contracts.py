"""Parts of torch and DeepSpeed that are private or that only a GPU or several ranks call, against the installed ones.

Everything here is used by name in `rl.shared_prefix`, `rl.training.zero` and `emu3.training.state`: a version in which
it is called otherwise has to fail in the tests and not on a node.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from emu3.training import state
from rl.shared_prefix import Stretches, flash_backward, flash_forward
from rl.training import zero

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("operator", "schema"),
    [
        (
            aten._flash_attention_forward.default,
            "(Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, Tensor? cum_seq_k, SymInt max_q, "
            "SymInt max_k, float dropout_p, bool is_causal, bool return_debug_mask, *, float? scale=None, ",
        ),
        (
            aten._flash_attention_backward.default,
            "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, Tensor cum_seq_q, "
            "Tensor cum_seq_k, SymInt max_q, SymInt max_k, float dropout_p, bool is_causal, Tensor rng_state, "
            "Tensor unused, *, float? scale=None, ",
        ),
        (
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            "(Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, *, "
            "Tensor? attn_mask=None, float? scale=None)",
        ),
        (
            aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
            "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, float dropout_p, "
            "bool is_causal, *, Tensor? attn_mask=None, float? scale=None)",
        ),
        (aten.mm.dtype, "(Tensor self, Tensor mat2, ScalarType out_dtype)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_operators_have_the_arguments_in_this_order(operator: Any, schema: str) -> None:
    """Most are handed over by position: one more in the middle would be taken for another."""
    _, _, arguments = str(operator._schema).partition("(")
    assert f"({arguments}".startswith(schema)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_branch_of_gpus_has_the_shapes_that_are_meant(key_heads: int) -> None:
    """The flash kernels of GPUs on tensors without numbers: lengths of any size in one call, logsums by query."""
    device = torch.device("meta")
    stretches = Stretches((3, 1, 6), (5, 3, 6), causal=False, device=device)
    query = torch.empty(10, 4, 64, dtype=torch.bfloat16, device=device)
    key, value = (torch.empty(14, key_heads, 64, dtype=torch.bfloat16, device=device) for _ in range(2))
    out, logsum = flash_forward(query, key, value, stretches, 0.1)
    assert (out.shape, out.dtype) == (query.shape, query.dtype)
    assert (logsum.shape, logsum.dtype) == ((10, 4), torch.float32)
    gradients = flash_backward(out, query, key, value, out, logsum, stretches, 0.1)
    assert [(x.shape, x.dtype) for x in gradients] == [(x.shape, x.dtype) for x in (query, key, value)]


def deepspeed_parts() -> dict[str, Any]:
    pytest.importorskip("deepspeed")
    import deepspeed
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils.tensor_fragment import tensor_fragment

    return {
        "deepspeed": deepspeed,
        "Engine": DeepSpeedEngine,
        "Stage2": DeepSpeedZeroOptimizer,
        "Stage3": DeepSpeedZeroOptimizer_Stage3,
        "fragment": tensor_fragment,
    }


@pytest.mark.parametrize(
    ("path", "positional", "named"),
    [
        ("deepspeed.initialize", (), {"model": None, "optimizer": None, "config": {}}),
        ("Engine.set_gradient_accumulation_boundary", (None, True), {}),
        ("Engine.backward", (None, torch.zeros(())), {}),
        ("Engine.step", (None,), {}),
        ("Engine.get_global_grad_norm", (None,), {}),
        ("deepspeed.zero.GatheredParameters", ([],), {"enabled": True}),
        (
            "deepspeed.comm.init_distributed",
            (),
            {"dist_backend": "gloo", "auto_mpi_discovery": False, "verbose": False},
        ),
        ("deepspeed.zero.register_external_parameter", (None, None), {}),
        ("deepspeed.utils.safe_get_full_fp32_param", (None,), {}),
        ("deepspeed.utils.safe_set_full_fp32_param", (None, None), {}),
        ("deepspeed.utils.safe_get_full_optimizer_state", (None, "exp_avg"), {}),
        ("deepspeed.utils.safe_set_full_optimizer_state", (None, None, "exp_avg"), {}),
        ("fragment.set_optim_state_fragment", (None, None, {}), {}),
    ],
)
def test_deepspeed_takes_what_it_is_given(path: str, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
    thing: Any = deepspeed_parts()
    for number, name in enumerate(path.split(".")):
        thing = thing[name] if number == 0 else getattr(thing, name)
    inspect.signature(thing).bind(*positional, **named)


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        ("Stage3", "self.fp32_partitioned_groups_flat = []"),
        ("Stage2", "self.single_partition_of_fp32_groups = []"),
        ("Stage2", "self.bit16_groups = []"),
        ("Stage2", "self.optimizer = "),
        ("Stage3", "self.optimizer = "),
    ],
)
def test_optimizers_keep_their_shards_under_these_names(owner: str, attribute: str) -> None:
    """`state` makes moments for them before a first step, and takes the name to tell the stages apart."""
    parts = deepspeed_parts()
    assert attribute in inspect.getsource(parts[owner])
    assert isinstance(parts[owner].param_groups, property)  # where the learning rate is set
    if owner == "Stage2":
        assert "fp32_partitioned_groups_flat" not in inspect.getsource(parts[owner])


def test_a_parameter_knows_its_shard() -> None:
    deepspeed_parts()
    from deepspeed.utils import mixed_precision_linkage

    assert "lp_param._hp_mapping = " in inspect.getsource(mixed_precision_linkage)


def test_every_name_of_deepspeeds_is_in_this_file() -> None:
    """Guards this list: what the two modules take from DeepSpeed beyond `deepspeed.initialize` is looked up above."""
    here = Path(__file__).read_text(encoding="utf-8")
    used = set()
    for module in (zero, state):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
                "self._engine",
                "engine",
                "zero",
                "deepspeed.zero",
            ):
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepspeed"):
                used.update(alias.name for alias in node.names)
    known = {"logger", "optimizer", "device"}
    assert {name for name in used - known if name not in here} == set()
    assert {"set_gradient_accumulation_boundary", "bit16_groups", "safe_set_full_fp32_param"} <= used
