#!/usr/bin/env bash
# Sourced by the batch scripts beside it.

# run_on_nodes COMMAND ...: runs it once on each node of the job with the variables that emu3.launch reads, and ends
# as it does. Shortly before the job's time is up (`--signal=B:USR1`) training is told to save, and the job goes back into
# the queue when it has.
run_on_nodes() {
    step='' requeue=''
    trap 'requeue=yes; [ -z "$step" ] || kill -USR1 "$step"' USR1
    export NNODES=$SLURM_NNODES SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK MASTER_ADDR MASTER_PORT
    # Not `| head -n 1`: scontrol, cut off in its second line, would end the script under pipefail.
    read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    # In the background: bash would hold the signal back until a command in the foreground has ended.
    # shellcheck disable=SC2016  # the number of the node is known on the node
    srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' node "$@" &
    step=$!
    if [ "$requeue" ]; then kill -USR1 "$step"; fi   # it came before there was a step
    local code=0
    wait "$step" || code=$?
    if [ "$requeue" ]; then
        wait "$step" || true   # the first wait ended by the signal
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}
