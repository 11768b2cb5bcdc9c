#!/usr/bin/env bash
# Trains on every worker and waits: the same command on each host, which resumes.
#
#   launch/pod/run.sh --zone=us-east5-a --project=P [--slices=2] -- \
#       --config=configs/pretrain.py:7b --workdir=gs://bucket/run [--config.mesh...]
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/pod/common.sh
. "$folder/common.sh"
read_flags train "$@"

printf -v arguments '%q ' "${train_arguments[@]}"
inside="cd lavit_jax && . launch/environment.sh && enter_environment tpu"
on_all_workers "$inside && python -m lavit_jax.train ${arguments% }"
