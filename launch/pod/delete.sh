#!/usr/bin/env bash
# Gives a pod back, with all its slices.
#
#   launch/pod/delete.sh --zone=us-east5-a --project=P
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/pod/common.sh
. "$folder/common.sh"
read_flags none "$@"

execute gcloud compute tpus queued-resources delete "$name" "${place[@]}" \
  --force --quiet
