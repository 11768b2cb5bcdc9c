#!/usr/bin/env bash
# Checks format and style and runs the tests; arguments go to pytest:
#
#   launch/test.sh [tests/models -k golden ...]
#
# Makes its own environment first.
set -euo pipefail

# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
enter_environment test
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ruff format --check .
ruff check .
# Compiling keeps one core busy, so two files run side by side, in the order that
# tests/conftest.py gives.
exec pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
