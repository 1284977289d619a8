#!/usr/bin/env bash
# From checkpoints to the paper's tables: predictions, scores, tables beside the published scores, and a report.
#
#   OPENAI_API_KEY=... bash scripts/reproduce_tables.sh
#   MODELS=my_models.txt BENCHMARKS="aurora vismin" JUDGE_URL=http://127.0.0.1:4877/v1 JUDGE_MODEL= \
#       RESULTS=runs/mine bash scripts/reproduce_tables.sh --limit 50
#
# Arguments go to baselines.evaluate. Call it again after an interruption: finished predictions, replies and scores stay.
# Writes $RESULTS/BENCHMARK/NAME-seedN with everything that led to a number, $RESULTS/table.md, $RESULTS/paper/tables.md
# and $RESULTS/report.html. The published scores were made with the judge named here and with its authors' wording:
# give PROMPTS for that.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

MODELS=${MODELS:-$root/scripts/paper_models.txt}     # a line per model: NAME EDITOR [options]
BENCHMARKS=${BENCHMARKS:-omniedit emuedit aurora magicbrush vismin i2ebench}
METRICS=${METRICS:-viescore}                          # viescore l1 psnr ssim lpips clip_i dino ...
DATA_DIR=${DATA_DIR:-}                                # a folder with the benchmarks' Parquet files; empty: from the Hub
JUDGE_URL=${JUDGE_URL:-https://api.openai.com/v1}
JUDGE_MODEL=${JUDGE_MODEL-gpt-4o-mini-2024-07-18}     # empty: the only one that is served
REQUESTS_PER_MINUTE=${REQUESTS_PER_MINUTE:-}          # what the judge's provider allows
PROMPTS=${PROMPTS:-}                                  # a checkout of TIGER-AI-Lab/VIEScore; empty: this project's wording
REFERENCE=${REFERENCE:-sft_s}                         # the model that differences are taken to; empty: none
RESULTS=${RESULTS:-runs/tables}
SEED=${SEED:-0}
GPUS=${GPUS:-$(gpu_count)}

launch=(python -m)
if [ "$GPUS" -gt 1 ]; then launch+=(emu3.launch --ranks "$GPUS"); fi

scores=()
# The list has a descriptor of its own: what runs in the loop may read the standard input.
while read -r -u 3 name editor options; do
    if [ -z "$name" ] || [ "${name:0:1}" = "#" ]; then continue; fi
    read -ra options <<<"$options"
    for benchmark in $BENCHMARKS; do
        run=$RESULTS/$benchmark/$name-seed$SEED
        "${launch[@]}" baselines.evaluate --editor "$editor" --name "$name" "${options[@]}" \
            --benchmark "$benchmark" ${DATA_DIR:+--data-dir "$DATA_DIR"} --seed "$SEED" --output-dir "$run" "$@"
        # shellcheck disable=SC2086  # METRICS is a list
        python -m baselines.score --predictions "$run" --metrics $METRICS \
            --judge-url "$JUDGE_URL" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"} ${PROMPTS:+--prompts "$PROMPTS"} \
            ${REQUESTS_PER_MINUTE:+--requests-per-minute "$REQUESTS_PER_MINUTE"}
        scores+=("$run/scores.parquet")
    done
done 3<"$MODELS"

python -m baselines.table --scores "${scores[@]}" --output-dir "$RESULTS" ${REFERENCE:+--reference "$REFERENCE"}
python -m baselines.paper_tables --results "$RESULTS" --output "$RESULTS/paper"
python -m baselines.report --run-dir "$RESULTS" ${REFERENCE:+--reference "$REFERENCE"}
