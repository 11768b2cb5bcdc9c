#!/usr/bin/env bash
# The same run on Google Kubernetes Engine, by xpk (github.com/AI-Hypercomputer/xpk).
#
#   launch/pod/gke.sh --name=lavit --pod=v5p-128 --slices=2 --zone=us-east5-a \
#       --project=P -- --config=configs/pretrain.py:7b --workdir=gs://bucket/run
#
# Needs xpk and a cluster of that name, made once by
# `xpk cluster create --cluster=lavit --tpu-type=v5p-128 --num-slices=2 --spot`.
# A restarted workload resumes from its checkpoints.
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/pod/common.sh
. "$folder/common.sh"
read_flags pod,train "$@"

printf -v arguments '%q ' "${train_arguments[@]}"
inside=". launch/environment.sh && enter_environment tpu"
inside+=" && python -m lavit_jax.train ${arguments% }"
execute xpk workload create "--cluster=$name" "--workload=$name" "--tpu-type=$pod" \
  "--num-slices=$slices" "${place[@]}" --base-docker-image=python:3.12 \
  "--script-dir=$(dirname "$(dirname "$folder")")" --max-restarts=100 \
  "--command=bash -c '$inside'"
