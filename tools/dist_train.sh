#!/usr/bin/env bash
# Train on several GPUs of this machine (or with several CPU processes if it has none):
#   tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set. PYTHON names
# the interpreter if it is not "python".
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distributed.sh"
print_help "$@"

CONFIG=${1:?usage: tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]}
PROCESSES=${2:?usage: tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]}

check_launch "$CONFIG" "$PROCESSES"
launch "$PROCESSES" train.py "$CONFIG" --launcher pytorch "${@:3}"
