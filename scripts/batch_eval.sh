#!/usr/bin/env bash
# Quick look at a model: its edits of the first rows of a data set, K_SAMPLE of each, as PNG files.
#
#   MODEL_PATH=runs/sft/final VISION_PATH=models/vision VALPATH=data/pairs SPLIT=test \
#       bash scripts/batch_eval.sh --original-image-key input --edit-instruction instruction --edited-image output
#
# Writes a folder per sample: $SAVE_DIR/sample-0, ... Further arguments, above all the column names, go to
# baselines.evaluate. Call it again after an interruption: it goes on where it stopped.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

MODEL_PATH=${MODEL_PATH:?the checkpoint folder}
VISION_PATH=${VISION_PATH:?the folder of the vision tokenizer}
VALPATH=${VALPATH:?a Parquet file with pictures or a folder of them}
SPLIT=${SPLIT:-}              # of a folder, take the files whose names begin with it; empty: all
MODE=${MODE:-E}               # E: edit; CE: write a chain of thought, then edit
VAL_SIZE=${VAL_SIZE:-100}     # rows
BS=${BS:-64}                  # pictures at once
K_SAMPLE=${K_SAMPLE:-1}       # edits of each picture
SAVE_DIR=${SAVE_DIR:-runs/batch_eval}

case $MODE in
    E) think=() ;;
    CE) think=(--think) ;;
    *) echo "error: MODE is E or CE, not $MODE" >&2; exit 2 ;;
esac

for ((sample = 0; sample < K_SAMPLE; sample++)); do
    python -m baselines.evaluate \
        --editor emu3 --model "$MODEL_PATH" --vision "$VISION_PATH" \
        --data "$VALPATH" ${SPLIT:+--split "$SPLIT"} --limit "$VAL_SIZE" \
        --batch-size "$BS" --seed "$sample" "${think[@]}" \
        --output-dir "$SAVE_DIR/sample-$sample" "$@"
done
