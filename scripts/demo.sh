#!/usr/bin/env bash
# A page in the browser that edits images: installs what is missing, then serves it to this machine alone.
#
#   bash scripts/demo.sh --model MODEL [--vision VISION]                         then open http://127.0.0.1:7860
#   bash scripts/demo.sh --model runs/quickstart/sft_s__rl_sc/final
#
# --port and --host choose another address, --share adds a public one, --help lists the rest.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_project demo
exec python -m emu3.demo "$@"
