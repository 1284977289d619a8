#!/usr/bin/env bash
# Speed as ratios against the plain path or a peer's code, measured in turns: a table, and speed.json. Leave the
# machine alone meanwhile; on two cores it takes about twenty minutes, most of it in the peers.
#
#   bash scripts/speed.sh [--turns N] [--output FILE]
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_project dev
python -m dev.speed "$@"
python -m dev.speed.rl "$@"
python -m dev.speed.peers "$@"
