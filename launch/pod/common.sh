# What the pod scripts share: their flags, --dry_run, and commands on every worker.
#
#   --name=NAME        of the queued resource and of its nodes     (default: lavit)
#   --pod=TYPE         v4-128, v5litepod-256, v5p-128, v6e-256 ... (create, watch)
#   --slices=N         slices joined by the network                (default: 1)
#   --spot             capacity that may be taken away             (create, watch)
#   --zone=ZONE, --project=PROJECT                                 (always)
#   --dry_run          prints the exact commands and runs none
#   -- ARGUMENTS       what `python -m lavit_jax.train` gets        (run, watch)
# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this read the variables

fail() {
  echo "error: $*" >&2
  exit 2
}

# Reads the flags above into variables; $1 says which of pod and train are needed.
read_flags() {
  local needs="$1" flag
  shift
  name=lavit pod="" slices=1 spot="" zone="" project="" dry_run="" train_arguments=()
  while (($#)); do
    flag="$1"
    shift
    case "$flag" in
      --name=*) name="${flag#*=}" ;;
      --pod=*) pod="${flag#*=}" ;;
      --slices=*) slices="${flag#*=}" ;;
      --zone=*) zone="${flag#*=}" ;;
      --project=*) project="${flag#*=}" ;;
      --spot) spot=1 ;;
      --dry_run) dry_run=1 ;;
      --)
        train_arguments=("$@")
        break
        ;;
      *) fail "expected --name, --pod, --slices, --spot, --zone, --project, --dry_run" \
        "or --, got $flag; see launch/pod/common.sh" ;;
    esac
  done
  [[ -n "$zone" && -n "$project" ]] ||
    fail "expected --zone and --project, got zone '$zone' and project '$project'"
  [[ "$slices" =~ ^[1-9][0-9]*$ ]] ||
    fail "expected --slices as a whole number from 1, got '$slices'"
  [[ "$needs" != *pod* || -n "$pod" ]] ||
    fail "expected --pod, e.g. --pod=v5p-128, got none"
  [[ "$needs" != *train* || ${#train_arguments[@]} -gt 0 ]] ||
    fail "expected the arguments of train after --, got none"
  place=("--zone=$zone" "--project=$project")
}

# The software of a pod's machines.
runtime_version() {
  case "$1" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "expected --pod as v4-N, v5litepod-N, v5p-N or v6e-N, got $1" ;;
  esac
}

# Runs a command, or prints it as it would be typed.
execute() {
  local word line=""
  if [[ -z "$dry_run" ]]; then
    "$@"
    return
  fi
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@-]+$ ]] || word="${word@Q}"
    line+=" $word"
  done
  echo "${line# }"
}

# The names of the slices' nodes.
nodes() {
  local slice
  if ((slices == 1)); then
    echo "$name"
  else
    for ((slice = 0; slice < slices; slice++)); do echo "$name-$slice"; done
  fi
}

# Runs a shell command on every worker of every slice at once; fails if one fails.
on_all_workers() {
  local command="$1" node job status=0
  local -a jobs=()
  for node in $(nodes); do
    execute gcloud compute tpus tpu-vm ssh "$node" --worker=all "${place[@]}" \
      --command="$command" &
    jobs+=($!)
    [[ -z "$dry_run" ]] || wait "$!"
  done
  for job in "${jobs[@]}"; do wait "$job" || status=$?; done
  return "$status"
}
