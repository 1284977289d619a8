#!/usr/bin/env bash
# Our models on the benchmarks of the paper: images only; scores and tables are the next steps.
#
#   MODEL_PATHS="mair-lab/sft-simple mair-lab/sft-simple.rl-simple-n-complex" TOKENIZER_PATH=BAAI/Emu3-Gen \
#       bash baselines/scripts/our_eval.sh
#   MODEL_PATHS=runs/sft/final DATA_DIR=data/benchmarks BENCHMARKS="aurora vismin" bash baselines/scripts/our_eval.sh
#   MODEL_PATHS=runs/rl/final bash baselines/scripts/our_eval.sh --engine vllm
#
# Writes $SAVE_DIR/BENCHMARK/MODEL-seedN. Further arguments go to baselines.evaluate. Call it again after an
# interruption: it goes on where it stopped. One process per GPU, GPUS of them.
set -euo pipefail
source "$(dirname "$0")/../../scripts/environment.sh"

MODEL_PATHS=${MODEL_PATHS:?checkpoint folders or Hub ids, separated by spaces}
REVISION=${REVISION:-}        # a branch, tag or commit per model, separated by spaces; one goes for all
# VISION_PATH: for all models; unset: what each one names, or BAAI/Emu3-VisionTokenizer; empty: inside the model
TOKENIZER_PATH=${TOKENIZER_PATH:-}                          # empty: inside the model; SFT checkpoints have none
BENCHMARKS=${BENCHMARKS:-aurora emuedit i2ebench magicbrush omniedit vismin}
DATA_DIR=${DATA_DIR:-}        # a folder with the benchmarks' Parquet files; empty: from the Hub
BATCH_SIZE=${BATCH_SIZE:-64}  # images at once
MODE=${MODE:-E}               # E: edit; CE: write a chain of thought, then edit
SAVE_DIR=${SAVE_DIR:-results}
GPUS=${GPUS:-$(gpu_count)}

case $MODE in
    E) think=() ;;
    CE) think=(--think) ;;
    *) echo "error: MODE is E or CE, not $MODE" >&2; exit 2 ;;
esac
launch=(python -m)
if [ "$GPUS" -gt 1 ]; then launch+=(emu3.launch --ranks "$GPUS"); fi

read -ra models <<<"$MODEL_PATHS"
read -ra revisions <<<"$REVISION"
if [ ${#revisions[@]} -gt 1 ] && [ ${#revisions[@]} -ne ${#models[@]} ]; then
    echo "error: ${#models[@]} MODEL_PATHS and ${#revisions[@]} REVISION: give one for each, one for all, or none" >&2
    exit 2
fi

for number in "${!models[@]}"; do
    revision=${revisions[$number]:-${revisions[0]:-}}
    vision=${VISION_PATH-$(vision_of "${models[$number]}")}
    for benchmark in $BENCHMARKS; do
        "${launch[@]}" baselines.evaluate \
            --editor emu3 --model "${models[$number]}${revision:+@$revision}" \
            ${vision:+--vision "$vision"} ${TOKENIZER_PATH:+--tokenizer "$TOKENIZER_PATH"} \
            --benchmark "$benchmark" ${DATA_DIR:+--data-dir "$DATA_DIR"} \
            --batch-size "$BATCH_SIZE" "${think[@]}" --save-dir "$SAVE_DIR" "$@"
    done
done
