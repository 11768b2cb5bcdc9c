#!/usr/bin/env bash
# Copies the committed repository to every worker and makes its environment there.
#
#   launch/pod/setup.sh --zone=us-east5-a --project=P [--slices=2]
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/pod/common.sh
. "$folder/common.sh"
read_flags none "$@"

archive=build/lavit_jax.tar.gz
cd "$folder/../.."
execute mkdir -p build
execute git archive --format=tar.gz --output="$archive" HEAD
for node in $(nodes); do
  execute gcloud compute tpus tpu-vm scp "$archive" "$node:lavit_jax.tar.gz" \
    --worker=all "${place[@]}"
done
# The machines come with Python 3.10.
python="sudo add-apt-repository -y ppa:deadsnakes/ppa"
python+=" && sudo apt-get install -y python3.12-venv"
unpack="mkdir -p lavit_jax && tar -xzf lavit_jax.tar.gz -C lavit_jax && cd lavit_jax"
install="export PYTHON=python3.12 && . launch/environment.sh && enter_environment tpu"
on_all_workers "{ command -v python3.12 || { $python; }; } && $unpack && $install"
