#!/usr/bin/env bash
# Images -> shards of codes and a manifest. Call it again after an interruption: finished shards are kept.
#
#   bash scripts/tokenize.sh --data TIGER-Lab/OmniEdit-Filtered-1.2M --source HF --split train \
#       --output data/omniedit --vision models/vision --original-image-key src_img \
#       --edited-image edited_img --edit-instruction edited_prompt_list --id-key omni_edit_id --task-key task
#   bash scripts/tokenize.sh --data pairs.parquet --source local --output data/pairs ...
#
#   data_name="pairs.parquet" output_dir=data/pairs original_image_key=input edited_image=output \
#       edit_instruction=instruction image_area=65536 split=train . ./scripts/tokenize.sh    the published variables
#
#   WORKERS   processes on this machine, each with its own shards and progress bar (default: one for each GPU, or one)
#
# On several machines that share the output folder, the machine number $I of $N with one process each:
#   RANK=$I WORLD_SIZE=$N WORKERS=1 bash scripts/tokenize.sh ...
# Afterwards, `python -m emu3.train_image_editing.verify data/omniedit` checks every byte against the manifest.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

case " $* " in *" --help "* | *" -h "*)
    sed -n '2,/^\[/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    echo
    ;;
esac

flags=()
if [ -n "${data_name:-}" ]; then
    flags=(--dataset-name "$data_name" ${output_dir:+--output-path "$output_dir"} ${split:+--split "$split"}
        ${original_image_key:+--original-image-key "$original_image_key"} ${edited_image:+--edited-image "$edited_image"}
        ${edit_instruction:+--edit-instruction "$edit_instruction"} ${image_area:+--image-area "$image_area"})
    # shellcheck disable=SC2206,SC2128  # a list, as an array too
    if [ -n "${CoT_keys:-}" ]; then flags+=(--CoT-keys ${CoT_keys[*]}); fi
fi

gpus=$(gpu_count)
WORKERS=${WORKERS:-$((gpus > 0 ? gpus : 1))}

launch=(python -m)
if [ "$WORKERS" -gt 1 ]; then launch+=(emu3.launch --ranks "$WORKERS"); fi
exec "${launch[@]}" emu3.train_image_editing.prepare_data "${flags[@]}" "$@"
