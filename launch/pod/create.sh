#!/usr/bin/env bash
# Asks for a pod; it may queue for hours. Flags: launch/pod/common.sh.
#
#   launch/pod/create.sh --pod=v5p-128 --zone=us-east5-a --project=P [--spot] [--slices=2]
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/pod/common.sh
. "$folder/common.sh"
read_flags pod "$@"
software="$(runtime_version "$pod")"

where=("--node-id=$name")
if ((slices > 1)); then
  where=("--node-count=$slices" "--node-prefix=$name")
fi
execute gcloud compute tpus queued-resources create "$name" "${where[@]}" \
  "--accelerator-type=$pod" "--runtime-version=$software" "${place[@]}" \
  ${spot:+--spot}
