#!/usr/bin/env bash
# GRPO with a judge's score, by default on every GPU, else in one process on the CPU.
# Call it again after an interruption: a run of the same name continues from its newest whole checkpoint.
#
#   bash scripts/rl.sh rl/configs/sft_s__rl_sc.jsonnet [key=value ...]
#
# On several machines that share APP__BASE_EXP_DIR, the same line on each, number $I of 2 (scripts/slurm does it):
#   NNODES=2 NODE_RANK=$I MASTER_ADDR=first-machine MASTER_PORT=29500 bash scripts/rl.sh ...
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

gpus=$(gpu_count)
RANKS=${RANKS:-$((gpus > 0 ? gpus : 1))}                    # processes on this machine
ADDRESS_FILE=${ADDRESS_FILE:-runs/judge.address}            # where scripts/reward_server.sh says that it is ready
export APP__RUN_NAME=${APP__RUN_NAME:-$(basename -- "${1:-run}" .jsonnet)}   # the run's folder in APP__BASE_EXP_DIR
export APP__BASE_EXP_DIR=${APP__BASE_EXP_DIR:-runs/rl}
export APP__DATA_DIR=${APP__DATA_DIR:-data/earl-datasets}   # folders written by scripts/tokenize.sh
if [ -z "${APP__REWARD_FUNCTION_API_BASE:-}" ] && [ -s "$ADDRESS_FILE" ]; then
    APP__REWARD_FUNCTION_API_BASE=$(<"$ADDRESS_FILE")
fi
export APP__REWARD_FUNCTION_API_BASE=${APP__REWARD_FUNCTION_API_BASE:-http://127.0.0.1:4877/v1}

if [ "$gpus" -eq 0 ]; then tune_for_cpu; fi
exec python -m emu3.launch --ranks "$RANKS" rl.train "$@"
