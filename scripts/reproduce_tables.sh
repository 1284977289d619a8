#!/usr/bin/env bash
# From checkpoints to the paper's tables: predictions, scores, tables beside the published scores, and a report.
#
#   git clone https://github.com/TIGER-AI-Lab/VIEScore
#   PROMPTS=VIEScore OPENAI_API_KEY=... bash scripts/reproduce_tables.sh
#   PROTOCOL=ours MODELS=my_models.txt BENCHMARKS="aurora vismin" JUDGE_URL=http://127.0.0.1:4877/v1 JUDGE_MODEL= \
#       RESULTS=runs/mine bash scripts/reproduce_tables.sh --limit 50
#
# Arguments go to baselines.evaluate. Call it again after an interruption: finished predictions, replies and scores stay.
# Writes $RESULTS/BENCHMARK/NAME-seedN with everything that led to a number, $RESULTS/table.md, $RESULTS/paper/tables.md
# and $RESULTS/report.html. The published scores were made with the judge named here, its authors' wording and the
# protocol `published` of baselines.score: only such scores have a difference to them in the tables.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

MODELS=${MODELS:-$root/scripts/paper_models.txt}     # a line per model: NAME EDITOR [options]
BENCHMARKS=${BENCHMARKS:-omniedit emuedit aurora magicbrush vismin i2ebench}
METRICS=${METRICS:-viescore}                          # viescore l1 psnr ssim lpips clip_i dino ...
DATA_DIR=${DATA_DIR:-}                                # a folder with the benchmarks' Parquet files; empty: from the Hub
PROTOCOL=${PROTOCOL:-published}                       # published, as the paper's scores were made, or ours
JUDGE_URL=${JUDGE_URL:-https://api.openai.com/v1}
JUDGE_MODEL=${JUDGE_MODEL-gpt-4o-mini-2024-07-18}     # empty: the only one that is served
REQUESTS_PER_MINUTE=${REQUESTS_PER_MINUTE:-}          # what the judge's provider allows
PROMPTS=${PROMPTS:-}                                  # any folder of a checkout of TIGER-AI-Lab/VIEScore
JUDGE_IMAGE_FORMAT=${JUDGE_IMAGE_FORMAT:-}            # png or jpeg; empty here and below: what the protocol has
JUDGE_TEMPERATURE=${JUDGE_TEMPERATURE:-}              # a number, or none: left to the server
JUDGE_DEADLINE=${JUDGE_DEADLINE:-}                    # seconds for one question
JUDGE_CONCURRENCY=${JUDGE_CONCURRENCY:-}              # questions in flight
REFERENCE=${REFERENCE:-sft_s}                         # the model that differences are taken to; empty: none
RESULTS=${RESULTS:-runs/tables}
SEED=${SEED:-0}
GPUS=${GPUS:-$(gpu_count)}

if [ "$PROTOCOL" = published ] && [ -z "$PROMPTS" ] && [[ " $METRICS " == *" viescore "* ]]; then
    echo "error: the published protocol asks in VIEScore's own words: git clone" \
        "https://github.com/TIGER-AI-Lab/VIEScore and set PROMPTS=VIEScore, or set PROTOCOL=ours" >&2
    exit 2
fi

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
            --benchmark "$benchmark" ${DATA_DIR:+--data-dir "$DATA_DIR"} --seed "$SEED" --output "$run" "$@"
        # shellcheck disable=SC2086  # METRICS is a list
        python -m baselines.score --predictions "$run" --metrics $METRICS \
            --protocol "$PROTOCOL" --judge-url "$JUDGE_URL" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"} \
            ${PROMPTS:+--prompts "$PROMPTS"} ${JUDGE_IMAGE_FORMAT:+--judge-image-format "$JUDGE_IMAGE_FORMAT"} \
            ${JUDGE_TEMPERATURE:+--judge-temperature "$JUDGE_TEMPERATURE"} \
            ${JUDGE_DEADLINE:+--judge-deadline "$JUDGE_DEADLINE"} \
            ${JUDGE_CONCURRENCY:+--judge-concurrency "$JUDGE_CONCURRENCY"} \
            ${REQUESTS_PER_MINUTE:+--requests-per-minute "$REQUESTS_PER_MINUTE"}
        scores+=("$run/scores.parquet")
    done
done 3<"$MODELS"

python -m baselines.table --scores "${scores[@]}" --output "$RESULTS" ${REFERENCE:+--reference "$REFERENCE"}
# Where no model is one of the paper's it says so, and the report is written all the same.
python -m baselines.paper_tables --protocol "$PROTOCOL" --results "$RESULTS" --output "$RESULTS/paper" || [ $? -eq 2 ]
python -m baselines.report --run-dir "$RESULTS" ${REFERENCE:+--reference "$REFERENCE"}
