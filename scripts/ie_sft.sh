#!/usr/bin/env bash
# Supervised fine-tuning with the paper's settings (batch 128, DeepSpeed ZeRO-3); without a GPU, on the CPU.
# Call it again after an interruption: it continues from the last checkpoint in $OUTPUT_DIR/$EXP_NAME, on as many GPUs
# as there are then. With VALPATH it stops when the evaluation loss has not become smaller PATIENCE times, and `final` is
# the checkpoint with the smallest. A checkpoint of the 8B model has 119 GB; the last one and the best one are kept.
# Further arguments go to emu3.train_image_editing.sft and win over those below.
#
#   DATAPATH="data/omniedit data/magic_brush" COEF="1 6" EXP_NAME=sft_s bash scripts/ie_sft.sh
#
# On several machines that share OUTPUT_DIR, the same line on each, number $I of 2 (scripts/slurm does it):
#   NNODES=2 NODE_RANK=$I MASTER_ADDR=first-machine MASTER_PORT=29500 bash scripts/ie_sft.sh
# WORLD_SIZE and RANK, as published, mean the same there.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODEL_PATH=${MODEL_PATH:-BAAI/Emu3-Stage1}   # a folder or a Hub id
DATAPATH=${DATAPATH[*]:-data/omniedit}         # folders written by scripts/tokenize.sh, separated by spaces
VALPATH=${VALPATH[*]:-}                        # likewise, for the evaluation loss
VALIDATION_SIZE=${VALIDATION_SIZE:-1000}
PATIENCE=${PATIENCE:-5}                     # evaluations, one after every 100 steps
DROPOUT=${DROPOUT:-0.1}                     # on embeddings, attention and both branches of each layer
COEF=${COEF[*]:-}                              # share of each folder of DATAPATH; empty: smaller ones are upsampled
COT_KEYS=${COT_KEYS[*]:-}                      # e.g. reasoning_verbose; empty: no reasoning
IMAGE_AREA=${IMAGE_AREA:-65536}
MAX_POS_EMB=${MAX_POS_EMB:-3000}
OUTPUT_DIR=${OUTPUT_DIR:-runs}
EXP_NAME=${EXP_NAME:-sft}
export NNODES=${NNODES:-${WORLD_SIZE:-1}} NODE_RANK=${NODE_RANK:-${RANK:-}}
unset WORLD_SIZE RANK
DEEPSPEED=${DEEPSPEED:-$(dirname "${BASH_SOURCE[0]}")/zero3.json}
GPUS=${GPUS:-$(gpu_count)}                   # of this machine
PER_DEVICE=${PER_DEVICE:-4}
BATCH=128

if [ "$GPUS" -gt 0 ]; then
    device=(--deepspeed "$DEEPSPEED" --bf16)
else
    tune_for_cpu
    device=(--use_cpu)
fi
processes=$((GPUS > 0 ? GPUS : 1))
at_once=$((PER_DEVICE * processes * NNODES))
if ((BATCH % at_once)); then
    echo "error: $at_once rows at once (PER_DEVICE x processes x NNODES) do not divide $BATCH: choose another PER_DEVICE" >&2
    exit 2
fi

# Unquoted on purpose: these hold lists.
# shellcheck disable=SC2086
exec python -m emu3.launch --ranks "$processes" emu3.train_image_editing.sft \
    --model "$MODEL_PATH" \
    --data $DATAPATH \
    ${COEF:+--coefficients $COEF} \
    ${COT_KEYS:+--cot_keys $COT_KEYS} \
    ${VALPATH:+--eval_data $VALPATH --validation_size $VALIDATION_SIZE --eval_strategy steps --eval_steps 100} \
    ${VALPATH:+--early_stopping_patience $PATIENCE --load_best_model_at_end True} \
    --dropout "$DROPOUT" \
    --image_area "$IMAGE_AREA" \
    --max_position_embeddings "$MAX_POS_EMB" \
    --output_dir "$OUTPUT_DIR/$EXP_NAME" \
    --per_device_train_batch_size "$PER_DEVICE" \
    --gradient_accumulation_steps $((BATCH / at_once)) \
    --gradient_checkpointing True \
    --num_train_epochs 5 \
    --learning_rate 1e-4 \
    --lr_scheduler_type cosine_with_min_lr \
    --lr_scheduler_kwargs '{"min_lr": 1e-6}' \
    --warmup_steps 30 \
    --weight_decay 0.1 \
    --adam_beta1 0.9 --adam_beta2 0.95 --adam_epsilon 1e-6 \
    --max_grad_norm 5.0 \
    --save_strategy steps --save_steps 100 --save_total_limit 2 \
    --logging_steps 1 \
    "${device[@]}" "$@"
