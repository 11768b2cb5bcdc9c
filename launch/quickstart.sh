#!/usr/bin/env bash
# Trains a small LaVIT on embedded data and writes a report:
#
#   launch/quickstart.sh [--workdir=runs/quickstart] [--smoke]
#
# Makes its own environment first. The same command continues an interrupted run.
set -euo pipefail

# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck disable=SC2119  # our arguments are not extras
enter_environment
exec python -m lavit_jax.quickstart "$@"
