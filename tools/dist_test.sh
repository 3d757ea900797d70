#!/usr/bin/env bash
# Evaluate on several GPUs of this machine (or with several CPU processes if it has none):
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set. PYTHON names
# the interpreter if it is not "python".
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distributed.sh"
print_help "$@"

CONFIG=${1:?usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]}
CHECKPOINT=${2:?usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]}
PROCESSES=${3:?usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]}

check_launch "$CONFIG" "$PROCESSES"
[[ -f $CHECKPOINT || $CHECKPOINT == *://* ]] || fail "the checkpoint $CHECKPOINT is not a file"
launch "$PROCESSES" test.py "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
