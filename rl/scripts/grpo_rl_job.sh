#!/usr/bin/env bash
# A published name: python -m emu3.published_names has what it is called here.
(source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/environment.sh" && python -m emu3.published_names rl/scripts/grpo_rl_job.sh)
