#!/usr/bin/env bash
# Evaluate on several GPUs of this machine (or several CPU processes, where it has no GPU):
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set. PYTHON names
# the interpreter, where it is not "python".
set -euo pipefail

CONFIG=${1:?usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]}
CHECKPOINT=${2:?usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]}
PROCESSES=${3:?usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]}
ROOT=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "error: $1" >&2
    exit 2
}
[[ -f $CONFIG ]] || fail "there is no config file $CONFIG"
[[ -f $CHECKPOINT || $CHECKPOINT == *://* ]] || fail "the checkpoint $CHECKPOINT is not a file"
[[ $PROCESSES =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES must be a number of at least 1, got $PROCESSES"

PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
