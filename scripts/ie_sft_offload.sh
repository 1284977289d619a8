#!/usr/bin/env bash
# scripts/ie_sft.sh for GPUs that cannot hold the optimiser: its state and the parameters wait in CPU memory.
set -euo pipefail

here=$(dirname "$0")
DEEPSPEED=$here/zero3_offload.json exec bash "$here/ie_sft.sh" "$@"
