#!/usr/bin/env bash
# Speed as ratios against the plain path or a peer's code, measured in turns: a table, and speed.json. Leave the
# machine alone meanwhile; on two cores it takes about ten minutes, most of it in the peers.
#
#   bash scripts/speed.sh [--turns N] [--output FILE]
set -euo pipefail
source "$(dirname "$0")/environment.sh"

install_project dev
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}  # dev/ is not installed
python -m dev.speed "$@"
python -m dev.speed.rl "$@"
