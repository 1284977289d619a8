#!/usr/bin/env bash
# scripts/ie_sft.sh for GPUs that cannot hold the optimizer: its state and the parameters wait in CPU memory.
set -euo pipefail

scripts=$(dirname "$0")
DEEPSPEED=$scripts/zero3_offload.json exec bash "$scripts/ie_sft.sh" "$@"
