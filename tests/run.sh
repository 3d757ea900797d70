#!/usr/bin/env bash
# Install what is missing, check lint, format and types, then run the tests. Arguments go to pytest.
# Everything goes into the active virtual environment, or else into .venv.
# The tests share the cores, at most four of them, file by file: a fixture serves its whole file. They
# stay in the order of conftest.py, where the long files come first.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    echo "usage: tests/run.sh [ARGUMENT OF PYTEST]..., such as tests/run.sh tests/ops -k stride"
    sed -n 's/^# //p' "${BASH_SOURCE[0]}"
    exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=${VIRTUAL_ENV:-.venv}
[[ -x $environment/bin/python ]] || python3 -m venv "$environment"
bin=$environment/bin
"$bin/python" -m pip install --quiet -r requirements.txt -e .
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder "$@"
