#!/usr/bin/env bash
# The paper's tables and claims in the embedded world on two CPU cores: installs what is missing, then runs shapes.study.
# Call it again after an interruption: what is done is not made again.
#
#   bash scripts/study.sh --budget 30m              five rows of one seed; then open runs/study/study.html
#   bash scripts/study.sh --budget 3h               Table 2's rows on six benchmarks, and a map at four noise levels
#   bash scripts/study.sh --budget night            what fits ten hours; without --budget, three seeds of everything
#   bash scripts/study.sh --preset smoke            a handful of steps of each run
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_project
tune_for_cpu
exec python -m shapes.study "$@"
