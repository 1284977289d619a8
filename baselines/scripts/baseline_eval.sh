#!/usr/bin/env bash
# The published baselines on the benchmarks of the paper: images only; scores and tables are the next steps.
#
#   bash baselines/scripts/baseline_eval.sh
#   BASELINE="InstructPix2Pix Omnigen" DATA_DIR=data/benchmarks bash baselines/scripts/baseline_eval.sh
#   BASELINE=MagicBrush bash baselines/scripts/baseline_eval.sh --model models/magicbrush
#
# Writes $SAVE_DIR/BENCHMARK/BASELINE-seedN. Further arguments go to baselines.evaluate, such as --model with a folder
# of converted weights where the published ones are pickled. Call it again after an interruption: it goes on where it
# stopped. One process per GPU, GPUS of them.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/environment.sh"

BASELINE=${BASELINE[*]:-InstructPix2Pix MagicBrush Aurora Omnigen}
BENCHMARKS=${BENCHMARKS:-aurora emuedit i2ebench magicbrush omniedit vismin}
DATA_DIR=${DATA_DIR:-}        # a folder with the benchmarks' Parquet files; empty: from the Hub
BATCH_SIZE=${BATCH_SIZE:-}    # images at once; empty: what suits the model
SAVE_DIR=${SAVE_DIR:-results}
GPUS=${GPUS:-$(gpu_count)}

launch=(python -m)
if [ "$GPUS" -gt 1 ]; then launch+=(emu3.launch --ranks "$GPUS"); fi

for baseline in $BASELINE; do
    case $baseline in
        InstructPix2Pix) editor=instruct-pix2pix ;;
        MagicBrush) editor=magicbrush ;;
        Aurora) editor=aurora ;;
        Omnigen) editor=omnigen ;;
        *) echo "error: BASELINE has InstructPix2Pix, MagicBrush, Aurora, Omnigen, not $baseline" >&2; exit 2 ;;
    esac
    for benchmark in $BENCHMARKS; do
        "${launch[@]}" baselines.evaluate --editor "$editor" --name "$baseline" \
            --benchmark "$benchmark" ${DATA_DIR:+--data-dir "$DATA_DIR"} \
            ${BATCH_SIZE:+--batch-size "$BATCH_SIZE"} --save-dir "$SAVE_DIR" "$@"
    done
done
