#!/usr/bin/env bash
# What the scripts that start several processes share; they source it:
#   tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
# Each prints its usage with --help.

# print_help ARGUMENTS: for -h or --help as the first one, prints the comment that begins the script.
print_help() {
    if [[ ${1:-} == -h || ${1:-} == --help ]]; then
        sed -n '1d;/^#/!q;s/^# \{0,1\}//p' "$0"
        exit 0
    fi
}

fail() {
    echo "error: $1" >&2
    exit 2
}

# check_launch CONFIG PROCESSES
check_launch() {
    [[ -f $1 ]] || fail "there is no config file $1"
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES must be a number of at least 1, got $2"
}

# launch PROCESSES TOOL [arguments of the tool]: replaces this process by the launcher.
launch() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m rednet.cli.launch \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$root/tools/$2" "${@:3}"
}

# Called by itself, it prints what it is for.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    print_help --help
fi
