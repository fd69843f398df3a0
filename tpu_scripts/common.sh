# shellcheck shell=bash
# Sourced by every script here: options, dry runs, and the few gcloud calls that several of them share.
set -euo pipefail
# shellcheck disable=SC2034  # Used by the scripts that source this.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=""
REST=()
ENVIRONMENT=()
# Options every script that talks to a slice has.
opt_name="" opt_zone="" opt_project="" opt_slices=1

say() { printf '%s\n' "$*" >&2; }
die() {
  say "${0##*/}: $*"
  exit 2
}

# The comment at the head of a script is its help.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

# parse "OPTIONS" "FLAGS" ARGUMENTS...: --key=value into opt_key, --flag into opt_flag=1, what follows -- into REST.
parse() {
  local options=" $1 name zone project slices " flags=" $2 " key
  shift 2
  while [ $# -gt 0 ]; do
    key=${1%%=*}
    key=${key#--}
    case $1 in
      --help) usage && exit 0 ;;
      --dry-run) DRY_RUN=1 ;;
      --)
        shift
        REST=("$@")
        return
        ;;
      --*=*)
        [[ $options == *" $key "* ]] || die "unknown option --$key; see --help"
        if [ "$key" = env ]; then # The only one that may be repeated.
          ENVIRONMENT+=("${1#*=}")
        else
          printf -v "opt_${key//-/_}" '%s' "${1#*=}"
        fi
        ;;
      --*)
        [[ $options != *" $key "* ]] || die "--$key needs a value: --$key=..."
        [[ $flags == *" $key "* ]] || die "unknown option --$key; see --help"
        printf -v "opt_${key//-/_}" 1
        ;;
      *) die "unexpected argument $1; see --help" ;;
    esac
    shift
  done
}

# need NAME...: these options must have a value.
need() {
  local key variable
  for key in "$@"; do
    variable=opt_${key//-/_}
    [ -n "${!variable}" ] || die "--$key=... is needed; see --help"
  done
  [[ $opt_slices =~ ^[1-9][0-9]*$ ]] || die "--slices=$opt_slices: must be at least 1"
  [[ -z $opt_name || $opt_name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "--name=$opt_name: must be lower-case letters, digits and dashes, and start with a letter"
}

# Run a command that changes something; under --dry-run only print it.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@" || die "failed ($?): $1 ${2-} ${3-} ${4-}"
  fi
}

where() {
  WHERE=("--zone=$opt_zone")
  [ -z "$opt_project" ] || WHERE+=("--project=$opt_project")
}

# State of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, ...; NONE if there is none. $1 is what a dry run assumes.
state() {
  local out
  if [ -n "$DRY_RUN" ]; then
    echo "$1"
  elif out=$(gcloud compute tpus queued-resources describe "$opt_name" "${WHERE[@]}" '--format=value(state.state)' 2>&1); then
    echo "${out##*$'\n'}"
  elif grep -q NOT_FOUND <<<"$out"; then
    echo NONE
  else
    die "gcloud cannot say how $opt_name is: ${out##*$'\n'}"
  fi
}

require_active() {
  local now
  now=$(state ACTIVE)
  [ "$now" = ACTIVE ] || die "$opt_name is $now, not ACTIVE: run create.sh or resume.sh first"
}

# Names of the TPU VMs: one per slice.
nodes() {
  local i
  if [ "$opt_slices" = 1 ]; then
    echo "$opt_name"
  else
    for ((i = 0; i < opt_slices; i++)); do echo "$opt_name-$i"; done
  fi
}

# on_workers WHICH COMMAND: a shell command on the workers (all, or a number) of every slice.
on_workers() {
  local node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" "--worker=$1" "--command=$2"
  done
}
