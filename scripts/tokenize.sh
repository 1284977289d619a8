#!/usr/bin/env bash
# Images -> shards of codes. Call it again after an interruption: finished shards are kept.
#
#   bash scripts/tokenize.sh --dataset-name TIGER-Lab/OmniEdit-Filtered-1.2M --source HF --split train \
#       --output-path data/omniedit --model-path models/vision --original-image-key src_img \
#       --edited-image edited_img --edit-instruction edited_prompt_list --id-key omni_edit_id --task-key task
#   bash scripts/tokenize.sh --dataset-name pairs.parquet --source local --output-path data/pairs ...
set -euo pipefail
source "$(dirname "$0")/environment.sh"

gpus=$(gpu_count)
WORKERS=${WORKERS:-$((gpus > 0 ? gpus : 1))}

launch=(python)
if [ "$WORKERS" -gt 1 ]; then launch+=(-m torch.distributed.run --standalone --nproc-per-node "$WORKERS"); fi
exec "${launch[@]}" -m emu3.train_image_editing.prepare_data "$@"
