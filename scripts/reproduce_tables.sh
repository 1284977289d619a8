#!/usr/bin/env bash
# From checkpoints to the paper's tables: predictions, scores, tables beside the published scores, and a report.
#
#   git clone https://github.com/TIGER-AI-Lab/VIEScore
#   PROMPTS=VIEScore OPENAI_API_KEY=... bash scripts/reproduce_tables.sh --plan
#   PROMPTS=VIEScore OPENAI_API_KEY=... bash scripts/reproduce_tables.sh
#   PROTOCOL=ours MODELS=my_models.txt BENCHMARKS="aurora vismin" JUDGE_URL=http://127.0.0.1:4877/v1 JUDGE_MODEL= \
#       RESULTS=runs/mine bash scripts/reproduce_tables.sh --limit 50
#
#   --plan   say what is left to make, to ask and to pay, and what is missing for it, and end
#   --yes    do not ask whether to go on (it is asked on a terminal only)
#   --help   this text
# Other arguments go to baselines.evaluate (python -m baselines.evaluate --help).
#
# Call it again after an interruption: finished predictions, replies and scores stay. Writes $RESULTS/BENCHMARK/NAME-seedN
# with everything that led to a number, $RESULTS/table.md, $RESULTS/paper/tables.md and $RESULTS/report.html. The
# published scores were made with the judge named here, its authors' wording and the protocol `published` of
# baselines.score: only such scores have a difference to them in the tables (docs/evaluation.md).
#
# Variables, their defaults, and what they are:
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODELS=${MODELS:-$root/scripts/paper_models.txt}     # a line per model: NAME EDITOR [options]
BENCHMARKS=${BENCHMARKS:-omniedit emuedit aurora magicbrush vismin i2ebench}    # names, in one string
METRICS=${METRICS:-viescore}                          # viescore l1 psnr ssim lpips clip_i dino ...
DATA_DIR=${DATA_DIR:-}                                # a folder with the benchmarks' Parquet files; empty: from the Hub
PROTOCOL=${PROTOCOL:-published}                       # published, as the paper's scores were made, or ours
JUDGE_URL=${JUDGE_URL:-https://api.openai.com/v1}     # an OpenAI-compatible address, or several, with commas
JUDGE_MODEL=${JUDGE_MODEL-gpt-4o-mini-2024-07-18}     # empty: the only one that is served
REQUESTS_PER_MINUTE=${REQUESTS_PER_MINUTE:-}          # what the judge's provider allows
PROMPTS=${PROMPTS:-}                                  # any folder of a checkout of TIGER-AI-Lab/VIEScore
JUDGE_IMAGE_FORMAT=${JUDGE_IMAGE_FORMAT:-}            # png or jpeg; empty here and below: what the protocol has
JUDGE_TEMPERATURE=${JUDGE_TEMPERATURE:-}              # a number, or none: left to the server
JUDGE_DEADLINE=${JUDGE_DEADLINE:-}                    # seconds for one question
JUDGE_CONCURRENCY=${JUDGE_CONCURRENCY:-}              # questions in flight
USD_PER_MILLION_TOKENS=${USD_PER_MILLION_TOKENS:-}    # two prices, of questions and of replies, for the plan's money
REPLY_TOKENS=${REPLY_TOKENS:-}                        # of a reply, for the plan; empty: as measured, else the most
JUDGE_IMAGE_TOKENS=${JUDGE_IMAGE_TOKENS:-}            # of an image, for the plan; empty: the judge's rule, where known
SECONDS_PER_IMAGE=${SECONDS_PER_IMAGE:-}              # for the plan's hours; empty: as measured in RESULTS, else unknown
REFERENCE=${REFERENCE-sft_s}                          # the model that differences are taken to; empty: none
RESULTS=${RESULTS:-runs/tables}                       # folder of everything
SEED=${SEED:-0}                                       # of the editors
GPUS=${GPUS:-$(gpu_count)}                            # processes that evaluate, one per GPU

own=() more=()
for argument in "$@"; do
    case $argument in
        -h | --help)
            sed -n -e '/^#!/d' -e '/^set -/,$d' -e 's/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            sed -n 's/^\([A-Z_]*\)=\${[A-Z_]*:\{0,1\}-\(.*\)} *# \(.*\)$/\1|\2|\3/p' "${BASH_SOURCE[0]}" |
                awk -F '|' '{ printf "  %-23s %s%s\n", $1, $3, $2 == "" ? "" : " [" $2 "]" }'
            exit 0
            ;;
        --plan | --yes) own+=("$argument") ;;
        *) more+=("$argument") ;;
    esac
done
if [ "$PROTOCOL" = published ] && [ -z "$PROMPTS" ] && [[ " $METRICS " == *" viescore "* ]]; then
    echo "error: the published protocol asks in VIEScore's own words: git clone" \
        "https://github.com/TIGER-AI-Lab/VIEScore and set PROMPTS=VIEScore, or set PROTOCOL=ours" >&2
    exit 2
fi

# shellcheck disable=SC2086  # BENCHMARKS, METRICS and the prices are lists
python -m baselines.reproduce --models "$MODELS" --benchmarks $BENCHMARKS --metrics $METRICS \
    ${DATA_DIR:+--data-dir "$DATA_DIR"} --results "$RESULTS" --seed "$SEED" --gpus "$GPUS" "${own[@]}" \
    ${REFERENCE:+--reference "$REFERENCE"} \
    ${USD_PER_MILLION_TOKENS:+--usd-per-million-tokens $USD_PER_MILLION_TOKENS} \
    ${REPLY_TOKENS:+--reply-tokens "$REPLY_TOKENS"} \
    ${JUDGE_IMAGE_TOKENS:+--judge-image-tokens "$JUDGE_IMAGE_TOKENS"} \
    ${SECONDS_PER_IMAGE:+--seconds-per-image "$SECONDS_PER_IMAGE"} \
    --protocol "$PROTOCOL" --judge-url "$JUDGE_URL" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"} \
    ${PROMPTS:+--prompts "$PROMPTS"} ${JUDGE_IMAGE_FORMAT:+--judge-image-format "$JUDGE_IMAGE_FORMAT"} \
    ${JUDGE_TEMPERATURE:+--judge-temperature "$JUDGE_TEMPERATURE"} \
    ${JUDGE_DEADLINE:+--judge-deadline "$JUDGE_DEADLINE"} \
    ${JUDGE_CONCURRENCY:+--judge-concurrency "$JUDGE_CONCURRENCY"} \
    ${REQUESTS_PER_MINUTE:+--requests-per-minute "$REQUESTS_PER_MINUTE"} -- "${more[@]}"
