#!/usr/bin/env bash
# Quick look at a model: its edits of the first rows of a dataset, K_SAMPLE of each, as PNG files.
#
#   MODEL_PATH=mair-lab/sft-simple HF_REVISION=main TOKENIZER_PATH=BAAI/Emu3-Gen \
#       VALPATH=TIGER-Lab/OmniEdit-Filtered-1.2M SPLIT=dev VAL_SIZE=100 bash scripts/batch_eval.sh
#   MODEL_PATH=runs/sft/final VALPATH=data/pairs original_image_key=input \
#       edit_instruction=instruction edited_image=output edit_type_key= bash scripts/batch_eval.sh
#
# Writes a folder per sample and seed: $SAVE_DIR/sample-42, ... Further arguments go to baselines.evaluate. Call it
# again after an interruption: it goes on where it stopped. One process per GPU, GPUS of them.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

MODEL_PATH=${MODEL_PATH:?a checkpoint folder or a Hub id}
HF_REVISION=${HF_REVISION:-}                                # branch, tag or commit of MODEL_PATH on the Hub
VISION_PATH=${VISION_PATH-$(vision_of "$MODEL_PATH")}       # empty: named by the model, or inside it
TOKENIZER_PATH=${TOKENIZER_PATH:-}                          # empty: inside the model; SFT checkpoints have none
VALPATH=${VALPATH:?a Parquet file with images, a folder of them, or a Hub id}
SPLIT=${SPLIT:-}              # takes the files that are named for it; empty: all, of data on the disk
MODE=${MODE:-E}               # E: edit; CE: write a chain of thought, then edit
VAL_SIZE=${VAL_SIZE:-700}     # rows
BS=${BS:-100}                 # images at once
K_SAMPLE=${K_SAMPLE:-1}       # edits of each image
RANDOM_SEED=${RANDOM_SEED:-42}
SAVE_DIR=${SAVE_DIR:-runs/batch_eval}
GPUS=${GPUS:-$(gpu_count)}
original_image_key=${original_image_key:-src_img}
edit_instruction=${edit_instruction:-edited_prompt_list}
edited_image=${edited_image-edited_img}                     # empty: there is none
edit_type_key=${edit_type_key-task}                         # empty: there is none

case $MODE in
    E) think=() ;;
    CE) think=(--think) ;;
    *) echo "error: MODE is E or CE, not $MODE" >&2; exit 2 ;;
esac
launch=(python -m)
if [ "$GPUS" -gt 1 ]; then launch+=(emu3.launch --ranks "$GPUS"); fi

for ((sample = 0; sample < K_SAMPLE; sample++)); do
    "${launch[@]}" baselines.evaluate \
        --editor emu3 --model "$MODEL_PATH${HF_REVISION:+@$HF_REVISION}" \
        ${VISION_PATH:+--vision "$VISION_PATH"} ${TOKENIZER_PATH:+--tokenizer "$TOKENIZER_PATH"} \
        --data "$VALPATH" ${SPLIT:+--split "$SPLIT"} --limit "$VAL_SIZE" \
        --original-image-key "$original_image_key" --edit-instruction "$edit_instruction" \
        ${edited_image:+--edited-image "$edited_image"} ${edit_type_key:+--edit-type-key "$edit_type_key"} \
        --batch-size "$BS" --seed $((RANDOM_SEED + sample)) "${think[@]}" \
        --output "$SAVE_DIR/sample-$((RANDOM_SEED + sample))" "$@"
done
