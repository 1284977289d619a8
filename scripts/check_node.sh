#!/usr/bin/env bash
# Is this machine ready? One page of checks in minutes, before anything large is loaded; node.json for a bug report.
#
#   bash scripts/check_node.sh
#   bash scripts/check_node.sh --only machine judge             groups, or single checks
#   APP__REWARD_FUNCTION_API_BASE=http://judge:4877/v1 bash scripts/check_node.sh --skip published
#
# Looks at what scripts/rl.sh would use: CUDA_VISIBLE_DEVICES, the disk of APP__BASE_EXP_DIR, the judge of
# APP__REWARD_FUNCTION_API_BASE or of ADDRESS_FILE. Ends with code 1 if a check fails. docs/check-node.md explains each.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ADDRESS_FILE=${ADDRESS_FILE:-runs/judge.address}
if [ -z "${APP__REWARD_FUNCTION_API_BASE:-}" ] && [ -s "$ADDRESS_FILE" ]; then
    APP__REWARD_FUNCTION_API_BASE=$(<"$ADDRESS_FILE")
    export APP__REWARD_FUNCTION_API_BASE
fi

if [ "$(gpu_count)" -eq 0 ]; then tune_for_cpu; fi
exec python -m rl.check_node "$@"
