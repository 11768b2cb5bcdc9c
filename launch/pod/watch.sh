#!/usr/bin/env bash
# Watches a run until its model is there: asks for the pod, sets it up, trains, and
# starts again whenever the pod was taken away. Flags: launch/pod/common.sh.
#
#   launch/pod/watch.sh --pod=v5p-128 --spot --zone=us-east5-a --project=P -- \
#       --config=configs/pretrain.py:7b --workdir=gs://bucket/run
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/pod/common.sh
. "$folder/common.sh"
read_flags pod,train "$@"

workdir=""
for argument in "${train_arguments[@]}"; do
  case "$argument" in --workdir=gs://*) workdir="${argument#*=}" ;; esac
done
[[ -n "$workdir" ]] || fail "expected --workdir=gs://BUCKET/FOLDER after --, so that a" \
  "lost pod loses nothing; give one"

flags=("--name=$name" "--pod=$pod" "--slices=$slices" "${place[@]}" ${spot:+--spot}
  ${dry_run:+--dry_run})

state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format="value(state.state)" 2>/dev/null || echo NONE
}

finished() {
  execute gcloud storage ls "$workdir/model/manifest.json"
}

# One look at the pod and the step that follows from it.
advance() {
  case "$1" in
    NONE) "$folder/create.sh" "${flags[@]}" ;;
    ACTIVE)
      "$folder/setup.sh" "${flags[@]}" &&
        "$folder/run.sh" "${flags[@]}" -- "${train_arguments[@]}"
      ;;
    FAILED | SUSPENDED) "$folder/delete.sh" "${flags[@]}" ;;
    *) echo "waiting: $name is $1" ;;
  esac
}

if [[ -n "$dry_run" ]]; then
  for each in NONE ACTIVE SUSPENDED; do
    echo "# when the pod is $each"
    advance "$each"
  done
  echo "# finished when this succeeds"
  finished
  exit
fi
until finished >/dev/null 2>&1; do
  advance "$(state)" || echo "the step failed; trying again" >&2
  finished >/dev/null 2>&1 || sleep 60
done
echo "finished: $workdir/model; launch/pod/delete.sh gives the pod back"
