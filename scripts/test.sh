#!/usr/bin/env bash
# Style, types, tests: installs what is missing, then runs them from the repository's root. Arguments go to pytest;
# without any, every core takes files of tests.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/shapes -k judge
set -euo pipefail
source "$(dirname "$0")/environment.sh"

install_project dev
tune_for_cpu
export OMP_NUM_THREADS=1  # the tests' tensors are too small for threads
cd "$root"
ruff check .
ruff format --check .
mypy
if [ $# -eq 0 ]; then set -- --numprocesses logical --dist loadfile; fi
exec pytest -q "$@"
