#!/usr/bin/env bash
# Sourced by the other scripts: the project's Python, its installation, and settings for training on a CPU.
#
#   PYTHON        the Python that .venv is made of (default: the first of python3, python3.12, python3.11 that fits)
#   TORCH_INDEX   package index for torch; https://download.pytorch.org/whl/cpu has the small build without CUDA

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$root/.venv/bin/python" ]; then PATH=$root/.venv/bin:$PATH; fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}  # from whatever folder the script is called

# install_project [EXTRA]: makes .venv and installs the project into it, unless that has been done.
install_project() {
    local venv=$root/.venv extra=${1:-} python
    if is_installed "$extra"; then return; fi
    if [ ! -x "$venv/bin/pip" ]; then
        python=$(fitting_python)
        echo "making .venv with $("$python" --version)"
        "$python" -m venv "$venv"
    fi
    PATH=$venv/bin:$PATH
    echo "installing packages into .venv, which takes some minutes the first time"
    pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        --constraint "$root/requirements.txt" torch
    pip install --quiet --constraint "$root/requirements.txt" --editable "$root${extra:+[$extra]}"
    cp "$root/pyproject.toml" "$venv/installed.toml"
}

# is_installed EXTRA: whether this pyproject.toml was installed, and every package that it needs is there now, with those
# of EXTRA. What is there is asked, since another extra, vLLM or a hand may have replaced a package in between.
is_installed() {
    cmp -s "$root/pyproject.toml" "$root/.venv/installed.toml" || return
    "$root/.venv/bin/python" - "$root/pyproject.toml" "$1" 2>/dev/null <<'PYTHON'
import sys
import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
needed = [*project["dependencies"], *(project["optional-dependencies"][sys.argv[2]] if sys.argv[2] else [])]
while needed:
    requirement = Requirement(needed.pop())
    if requirement.name == project["name"]:
        for extra in requirement.extras:
            needed += project["optional-dependencies"][extra]
    elif not requirement.specifier.contains(version(requirement.name), prereleases=True):
        sys.exit(1)
PYTHON
}

fitting_python() {
    local python
    for python in ${PYTHON:-python3 python3.12 python3.11}; do
        if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "error: ${PYTHON:-python3} is not Python 3.11 or 3.12: install one and name it, PYTHON=/path/to/python3.12" >&2
    return 2
}

# The vision tokenizer of the checkpoint $1 where it does not name its own: that of the published models.
vision_of() {
    [ -f "$1/earl.json" ] || echo BAAI/Emu3-VisionTokenizer
}

# The text tokenizer of the checkpoint $1 where it is one of the paper's authors, whose evaluations all took this one.
tokenizer_of() {
    case $1 in mair-lab/* | Image-editing/*) echo BAAI/Emu3-Gen ;; esac
}

# The flag of baselines.evaluate for the published MODE $1.
think_flag() {
    case $1 in
        E) ;;
        CE) echo --think ;;
        mixed) echo --mixed ;;
        *) echo "error: MODE is E, CE or mixed, not $1" >&2; return 2 ;;
    esac
}

# gpu_count: how many GPUs a process that is started here sees, and with it the ranks that find one each. As CUDA does,
# CUDA_VISIBLE_DEVICES is read up to its first entry that names no GPU of this machine (so that "" and "-1" are none), a
# GPU that is named twice makes it void, and of all MIG devices together a process sees one.
gpu_count() {
    { nvidia-smi -L 2>/dev/null || true; } | awk -v chosen="${CUDA_VISIBLE_DEVICES+yes}" '
        function after(text, mark) { return substr(text, index(text, mark) + length(mark)) }
        function number_of(entry,    place, found, matches) {   # of the GPU; -1: there is none, or more than one
            if (entry ~ /^[0-9]+$/) return entry + 0 < gpus ? entry + 0 : -1
            for (place = 0; place < gpus; place++)
                if (entry ~ /^GPU-./ && index(uuid[place], entry) == 1) { found = place; matches++ }
            for (place = 0; place < parts; place++)
                if (entry ~ /^MIG-./ && index(part[place], entry) == 1) { found = "part " place; matches++ }
            return matches == 1 ? found : -1
        }
        /^GPU [0-9]+:/ { uuid[gpus++] = after($0, "UUID: ") }
        /^[ \t]+MIG / { divided[gpus - 1] = 1; part[parts++] = after($0, "UUID: ") }
        END {
            length_of_list = chosen ? split(ENVIRON["CUDA_VISIBLE_DEVICES"], list, ",") : gpus
            for (place = 1; place <= length_of_list; place++) {
                entry = chosen ? list[place] : place - 1
                gsub(/[ \t]/, "", entry)
                found = number_of(entry)
                if (found == -1) break
                if (found in seen) { whole = pieces = 0; break }
                seen[found] = 1
                if (found ~ /^part/ || found in divided) pieces++; else whole++
            }
            print whole ? whole : (pieces ? 1 : 0)
        }'
}

# On virtual machines page faults can take most of a CPU training step: freed memory is kept, and huge pages are asked
# for. Threads that spin while they wait would take the core from another process.
tune_for_cpu() {
    export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
    export MALLOC_TOP_PAD_=268435456 OMP_WAIT_POLICY=PASSIVE
}
