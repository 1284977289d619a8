#!/usr/bin/env bash
# Style, types, tests: installs what is missing, then runs them from the repository's root. Arguments go to pytest;
# without any, every core takes files of tests, and two processes more, since many tests wait: for processes of their own,
# for ranks that are slow on purpose.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/shapes -k judge
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_project dev
tune_for_cpu
export OMP_NUM_THREADS=1  # the tests' tensors are too small for threads
unset PYTHONDONTWRITEBYTECODE  # or each of some hundred processes would compile all modules for itself
cd "$root"
ruff check .
ruff format --check .
if [ $# -gt 0 ]; then
    mypy
    exec pytest -q "$@"
fi

# In a fresh clone mypy keeps one core busy for a minute: it runs beside the tests, and its words come behind theirs.
words=$(mktemp)
mypy > "$words" 2>&1 &
types=$!
trap 'kill "$types" 2>/dev/null || true; rm -f "$words"' EXIT
code=0
pytest -q --numprocesses $(($(nproc) + 2)) --dist loadfile --no-loadscope-reorder || code=$?
wait "$types" || code=$?
cat "$words"
exit "$code"
