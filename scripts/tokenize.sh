#!/usr/bin/env bash
# Images -> shards of codes and a manifest. Call it again after an interruption: finished shards are kept.
#
#   bash scripts/tokenize.sh --data TIGER-Lab/OmniEdit-Filtered-1.2M --source HF --split train \
#       --output data/omniedit --vision models/vision --original-image-key src_img \
#       --edited-image edited_img --edit-instruction edited_prompt_list --id-key omni_edit_id --task-key task
#   bash scripts/tokenize.sh --data pairs.parquet --source local --output data/pairs ...
#
#   WORKERS   processes on this machine, each with its own shards and progress bar (default: one for each GPU, or one)
#
# On several machines that share the output folder, the machine number $I of $N with one process each:
#   RANK=$I WORLD_SIZE=$N WORKERS=1 bash scripts/tokenize.sh ...
# Afterwards, `python -m emu3.train_image_editing.verify data/omniedit` checks every byte against the manifest.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

case " $* " in *" --help "* | *" -h "*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    echo
    ;;
esac

gpus=$(gpu_count)
WORKERS=${WORKERS:-$((gpus > 0 ? gpus : 1))}

launch=(python -m)
if [ "$WORKERS" -gt 1 ]; then launch+=(emu3.launch --ranks "$WORKERS"); fi
exec "${launch[@]}" emu3.train_image_editing.prepare_data "$@"
