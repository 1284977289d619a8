#!/usr/bin/env bash
# scripts/ie_sft.sh for GPUs that cannot hold the optimizer: its state and the parameters wait in CPU memory.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail

scripts=$(dirname "${BASH_SOURCE[0]}")
DEEPSPEED=$scripts/zero3_offload.json
apart=1 # which this shell is, whoever started it
source "$scripts/ie_sft.sh"
