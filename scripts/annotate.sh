#!/usr/bin/env bash
# Chains of thought for a dataset of edits, written by a vision-language model: five numbered steps with boxes.
# Call it again after an interruption: nothing is asked twice.
#
#   vllm serve Qwen/Qwen2.5-VL-72B-Instruct --tensor-parallel-size 4 --limit-mm-per-prompt '{"image": 2}' &
#   bash scripts/annotate.sh --source local --data pairs.parquet --output data/annotated \
#       --original-image-key input --edited-image-key output --edit-instruction-key instruction
#   bash scripts/tokenize.sh --source local --data data/annotated --output data/thinking \
#       --original-image-key input --edited-image output --edit-instruction instruction \
#       --id-key id --CoT-keys reasoning_verbose
#   COT_KEYS=reasoning_verbose DATAPATH=data/thinking bash scripts/ie_sft.sh
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

JUDGE_URL=${JUDGE_URL:-http://127.0.0.1:8000/v1}
JUDGE_MODEL=${JUDGE_MODEL:-}     # empty: the only one that is served

exec python -m rl.annotate --judge-url "$JUDGE_URL" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"} "$@"
