#!/usr/bin/env bash
# Build the documentation as a web site, into ./site or the folder given. Every warning is an error.
#   pip install '.[docs]' && docs/build.sh [FOLDER]
# The API reference is read from the source: the package need not be importable.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python}" -m mkdocs build --strict --site-dir "${1:-site}"
