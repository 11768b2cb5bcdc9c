# The project's own environment, made and entered by the other scripts:
#
#   . launch/environment.sh
#   enter_environment [EXTRA...]      e.g. `test`, `judges`, `tpu`, `cuda`
#
# Python 3.11 or newer is all it needs; $PYTHON chooses one. The environment lives in
# .venv of the repository and is brought up to date when the requirements change. Where
# .venv is of another version than $PYTHON, that version has its own, such as .venv-3.12.
# shellcheck shell=bash

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$repository/.venv" # enter_environment may choose another

is_new_enough() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1
}

find_python() {
  local candidate
  local -a candidates=(python3 python3.11 python3.12 python3.13)
  if [[ -n "${PYTHON:-}" ]]; then
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: expected Python 3.11 or newer with its venv module, found none among" \
    "${candidates[*]}; install one or set PYTHON" >&2
  return 1
}

version_of() {
  "$1" -c 'import sys; print("{}.{}".format(*sys.version_info))'
}

# Sets `venv`. The pinned packages differ with the version, so no two versions share one.
choose_environment() {
  local python version
  venv="$repository/.venv"
  if [[ -n "${PYTHON:-}" && -x "$venv/bin/python" ]]; then
    python="$(find_python)" && version="$(version_of "$python")" || return 1
    if [[ "$(version_of "$venv/bin/python")" != "$version" ]]; then
      venv+="-$version"
    fi
  fi
}

# What decides which packages belong into the environment, and which extras are in it.
requirements_sum() {
  cat "$repository/requirements.txt" "$repository/pyproject.toml" | cksum
}

install_project() {
  local extras="$*"
  echo "installing the requirements${extras:+ with $extras} into $venv" >&2
  (cd "$repository" && "$venv/bin/python" -m pip install --quiet \
    --disable-pip-version-check --requirement requirements.txt \
    --editable ".${extras:+[${extras// /,}]}")
}

# Extras add up: a script that needs none keeps those that another one asked for.
enter_environment() {
  local python stamp extra sum current=""
  local -a extras=()
  choose_environment || return 1
  stamp="$venv/made-of"
  if [[ -f "$stamp" ]]; then
    { read -r current && read -r -a extras; } <"$stamp" || true
  fi
  sum="$(requirements_sum)"
  for extra in "$@"; do
    if [[ " ${extras[*]:-} " != *" $extra "* ]]; then
      extras+=("$extra")
      current=""
    fi
  done
  if [[ ! -x "$venv/bin/python" ]]; then
    python="$(find_python)" || return 1
    "$python" -m venv "$venv" || return 1
    current=""
  fi
  if [[ "$current" != "$sum" ]]; then
    install_project ${extras[@]+"${extras[@]}"} || return 1
    printf '%s\n%s\n' "$sum" "${extras[*]:-}" >"$stamp"
  fi
  export PATH="$venv/bin:$PATH"
}

# A training step on a CPU frees and takes again hundreds of megabytes of temporaries.
# By default glibc hands such blocks back to the kernel and faults them in page by page,
# which takes half of the time. These settings keep the memory and ask for huge pages;
# they must be set before Python starts, and other C libraries ignore them.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
export MALLOC_MMAP_MAX_=0
export MALLOC_TRIM_THRESHOLD_=100000000000
export MALLOC_TOP_PAD_=268435456
