#!/usr/bin/env bash
# The judge: serves a vision-language model with vLLM until it is stopped, and says where as soon as it answers.
#
#   bash scripts/reward_server.sh                          4 GPUs, for trainers on this machine
#   HOST=0.0.0.0 bash scripts/reward_server.sh             for other machines; five or six runs can share one
#   MODEL=Qwen/Qwen2.5-VL-7B-Instruct TP=1 bash scripts/reward_server.sh --gpu-memory-utilization 0.9
#
# What follows goes to vLLM and wins over what stands below. Whoever reaches the port can ask: on a network that is not
# yours alone set VLLM_API_KEY here, and OPENAI_API_KEY to the same where the trainers run.
[ "${BASH_SOURCE[0]-}" = "$0" ] || [ "${apart-}" ] || { # sourced: in a shell of its own, whose code it returns
    (apart=1; [ -z "${ZSH_VERSION-}" ] || exec bash "$0" "$@"; . "${BASH_SOURCE[0]}" "$@"); return
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODEL=${MODEL:-Qwen/Qwen2.5-VL-72B-Instruct}
TP=${TP:-4}                                         # GPUs that share the model
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-4877}
ADDRESS_FILE=${ADDRESS_FILE:-runs/judge.address}    # there while the server answers; read by scripts/rl.sh
STARTUP_SECONDS=${STARTUP_SECONDS:-3600}            # the first start downloads 147 GB
POLL_SECONDS=${POLL_SECONDS:-5}

case $HOST in
    0.0.0.0) near=127.0.0.1 name=$(hostname) ;;
    *) near=$HOST name=$HOST ;;
esac
address=http://$name:$PORT/v1

answers() {
    python - "http://$near:$PORT/health" 2>/dev/null <<'PYTHON'
import sys
import urllib.request

urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=10)
PYTHON
}

stop() {
    trap '' INT TERM HUP  # whoever ends a group of processes may signal more than once, and what runs here with it
    if [ "$(cat "$ADDRESS_FILE" 2>/dev/null)" = "$address" ]; then rm -f "$ADDRESS_FILE"; fi
    kill "$server" 2>/dev/null || return 0
    for _ in {1..60}; do
        if ! kill -0 "$server" 2>/dev/null; then return 0; fi
        sleep 0.5
    done
    kill -KILL "$server"
}

if ! command -v vllm >/dev/null; then
    echo "error: there is no command vllm beside $(command -v python): pip install '.[vllm]'" >&2
    exit 2
fi
if answers; then
    echo "error: a server answers at $near:$PORT already: choose another PORT" >&2
    exit 2
fi
rm -f "$ADDRESS_FILE"

# The limits of the published server: a question is two images and a page of text, and all runs ask at once.
vllm serve "$MODEL" \
    --host "$HOST" \
    --port "$PORT" \
    --tensor-parallel-size "$TP" \
    --dtype bfloat16 \
    --max-model-len 4096 \
    --max-num-seqs 1024 \
    --limit-mm-per-prompt '{"image": 2, "video": 0}' \
    "$@" &
server=$!
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

until answers; do
    if ! kill -0 "$server" 2>/dev/null; then
        echo "error: the server ended before it answered; its last lines say why" >&2
        exit 1
    fi
    if ((SECONDS >= STARTUP_SECONDS)); then
        echo "error: no answer from $near:$PORT after $STARTUP_SECONDS s (STARTUP_SECONDS)" >&2
        exit 1
    fi
    sleep "$POLL_SECONDS"
done

mkdir -p "$(dirname "$ADDRESS_FILE")"
echo "$address" > "$ADDRESS_FILE.$$"
mv "$ADDRESS_FILE.$$" "$ADDRESS_FILE"
echo "judge: $MODEL at $address, as $ADDRESS_FILE says"
wait "$server"
