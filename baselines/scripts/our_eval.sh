#!/usr/bin/env bash
# Our models on the benchmarks of the paper: images only; scores and tables are the next steps. Without variables: the
# two models that the published script names.
#
#   MODEL_PATHS="mair-lab/sft-simple mair-lab/sft-simple.rl-simple-n-complex" bash baselines/scripts/our_eval.sh
#   MODEL_PATHS=runs/sft/final DATA_DIR=data/benchmarks BENCHMARKS="aurora vismin" bash baselines/scripts/our_eval.sh
#   MODEL_PATHS=runs/rl/final bash baselines/scripts/our_eval.sh --engine vllm
#
# Writes $SAVE_DIR/BENCHMARK/MODEL-seedN. Further arguments go to baselines.evaluate. Call it again after an
# interruption: it goes on where it stopped. One process per GPU, GPUS of them.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/environment.sh"

# folders or Hub ids, separated by spaces
MODEL_PATHS=${MODEL_PATHS[*]:-mair-lab/sft-simple.rl-simple-n-complex mair-lab/earl-sft-simple.rl-simple-n-complex-scaled}
REVISION=${REVISION[*]:-}     # a branch, tag or commit per model, separated by spaces; one goes for all
if [ "${USE_REVISION:-True}" = False ]; then REVISION=; fi
# VISION_PATH: for all models; unset: what each one names, or BAAI/Emu3-VisionTokenizer; empty: inside the model
# TOKENIZER_PATH: likewise; unset: BAAI/Emu3-Gen for the published models, for others inside the model
BENCHMARKS=${BENCHMARKS:-aurora emuedit i2ebench magicbrush omniedit vismin}
DATA_DIR=${DATA_DIR:-}        # a folder with the benchmarks' Parquet files; empty: from the Hub
BATCH_SIZE=${BATCH_SIZE:-64}  # images at once
MODE=${MODE:-E}               # E: edit; CE: write a chain of thought, then edit; mixed: the model decides
SAVE_DIR=${SAVE_DIR:-results}
GPUS=${GPUS:-$(gpu_count)}

think=$(think_flag "$MODE")
if [ "${REASONING_INPUT:-False}" != False ]; then
    echo "error: REASONING_INPUT is not offered: with MODE=CE a model reads its own chain of thought" >&2
    exit 2
fi
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
    tokenizer=${TOKENIZER_PATH-$(tokenizer_of "${models[$number]}")}
    for benchmark in $BENCHMARKS; do
        "${launch[@]}" baselines.evaluate \
            --editor emu3 --model "${models[$number]}${revision:+@$revision}" \
            ${vision:+--vision "$vision"} ${tokenizer:+--tokenizer "$tokenizer"} \
            --benchmark "$benchmark" ${DATA_DIR:+--data-dir "$DATA_DIR"} \
            --batch-size "$BATCH_SIZE" ${think:+"$think"} --save-dir "$SAVE_DIR" "$@"
    done
done
