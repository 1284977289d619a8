#!/usr/bin/env bash
# Quick look at a model: its edits of some rows of a dataset, K_SAMPLE of each, as PNG files. Without variables:
# EARL on the 700 rows of OmniEdit's split dev, as published.
#
#   . ./scripts/batch_eval.sh
#   MODEL_PATH=mair-lab/sft-simple HF_REVISION=main VAL_SIZE=100 bash scripts/batch_eval.sh
#   MODEL_PATH=runs/sft/final VALPATH=data/pairs original_image_key=input \
#       edit_instruction=instruction edited_image=output edit_type_key= bash scripts/batch_eval.sh
#
# Writes a folder per sample and seed: $SAVE_DIR/sample-42, ... Further arguments go to baselines.evaluate. Call it
# again after an interruption: it goes on where it stopped. One process per GPU, GPUS of them.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODEL_PATH=${MODEL_PATH:-mair-lab/earl-sft-simple.rl-simple-n-complex-scaled}    # a folder or a Hub id
HF_REVISION=${HF_REVISION:-}                                # branch, tag or commit of MODEL_PATH on the Hub
VISION_PATH=${VISION_PATH-$(vision_of "$MODEL_PATH")}       # empty: named by the model, or inside it
TOKENIZER_PATH=${TOKENIZER_PATH-$(tokenizer_of "$MODEL_PATH")}    # empty: inside the model
if [ -z "${VALPATH:-}" ]; then VALPATH=TIGER-Lab/OmniEdit-Filtered-1.2M SPLIT=${SPLIT:-dev}; fi  # or files, or a folder
SPLIT=${SPLIT:-}              # takes the files that are named for it; empty: all, of data on the disk
# SOURCE of the data, MODEL_LOCATION: HF or local, which is checked; unset: a path that is there is taken, else the Hub
MODE=${MODE:-E}               # E: edit; CE: write a chain of thought, then edit; mixed: the model decides
NEW_TOKENS=${NEW_TOKENS:-}    # of a chain of thought, at most; an image has as many as it has
IMAGE_AREA=${IMAGE_AREA:-}    # pixels; empty: what the model was trained at, else 65,536
VAL_SIZE=${VAL_SIZE:-700}     # rows, drawn by a fixed seed
BS=${BS:-100}                 # images at once
K_SAMPLE=${K_SAMPLE:-1}       # edits of each image
RANDOM_SEED=${RANDOM_SEED:-42}
SAVE_DIR=${SAVE_DIR:-runs/batch_eval}
GPUS=${GPUS:-$(gpu_count)}
original_image_key=${original_image_key:-src_img}
edit_instruction=${edit_instruction:-edited_prompt_list}
edited_image=${edited_image-edited_img}                     # empty: there is none
edit_type_key=${edit_type_key-task}                         # empty: there is none

check_place() { # a variable's name and value, and what should be there
    case $2 in
        '' | HF) ;;
        local) if [ ! -e "$3" ]; then echo "error: $1 is local, but there is no $3 on this disk" >&2; exit 2; fi ;;
        *) echo "error: $1 is HF or local, not $2" >&2; exit 2 ;;
    esac
}
check_place SOURCE "${SOURCE:-}" "$VALPATH"
check_place MODEL_LOCATION "${MODEL_LOCATION:-}" "$MODEL_PATH"
think=$(think_flag "$MODE")
launch=(python -m)
if [ "$GPUS" -gt 1 ]; then launch+=(emu3.launch --ranks "$GPUS"); fi

for ((sample = 0; sample < K_SAMPLE; sample++)); do
    "${launch[@]}" baselines.evaluate \
        --editor emu3 --model "$MODEL_PATH${HF_REVISION:+@$HF_REVISION}" \
        ${VISION_PATH:+--vision "$VISION_PATH"} ${TOKENIZER_PATH:+--tokenizer "$TOKENIZER_PATH"} \
        --data "$VALPATH" ${SPLIT:+--split "$SPLIT"} --limit "$VAL_SIZE" \
        --original-image-key "$original_image_key" --edit-instruction "$edit_instruction" \
        ${edited_image:+--edited-image "$edited_image"} ${edit_type_key:+--edit-type-key "$edit_type_key"} \
        --batch-size "$BS" --seed $((RANDOM_SEED + sample)) ${IMAGE_AREA:+--image-area "$IMAGE_AREA"} \
        ${think:+"$think"} ${think:+${NEW_TOKENS:+--think-tokens "$NEW_TOKENS"}} \
        --output "$SAVE_DIR/sample-$((RANDOM_SEED + sample))" "$@"
done
