#!/usr/bin/env bash
# Go on after a preemption or a failure: ask for the slices again if they are gone, install, and start the run, which
# continues from its last checkpoint. Takes the options of create.sh, setup.sh and launch.sh together.
#
#   tpu_scripts/resume.sh --name=lacy --zone=us-west4-a --type=v5litepod-16 --spot --watch=5 \
#       --config=experiments/paper_334m.py:lacy --workdir=gs://BUCKET/paper_334m/lacy --data=gs://BUCKET/paper/dataset
#
#   --name= --zone= [--project=] [--slices=] --type= [--spot|--reserved] [--wait=] [--runtime=]   as for create.sh
#   --config= --workdir= [--data=] [--run=] [--libtpu-flags=] [--env=] [-- ARGUMENTS]                                       as for launch.sh
#   --watch=MINUTES   look every so often and resume as often as it takes, until the run has ended well
#   --failures=N      with --watch: give up once the run has failed so often, default 3; preemptions do not count, and what
#                     is wrong with the config or the data is given up at once (the statuses: docs/tpu.md)
#   --dry-run         print the commands, run none
#   --help

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck disable=SC2034  # Read by name, in `pass`.
opt_type="" opt_spot="" opt_reserved="" opt_wait="" opt_runtime="" opt_config="" opt_workdir="" opt_data="" opt_run="" opt_libtpu_flags="" opt_watch=0 opt_failures=3
parse "type wait runtime config workdir data run libtpu-flags env watch failures" "spot reserved" "$@"
need name zone type config workdir
where
[[ $opt_watch =~ ^[0-9]+$ ]] || die "--watch=$opt_watch: must be a number of minutes"
[[ $opt_failures =~ ^[1-9][0-9]*$ ]] || die "--failures=$opt_failures: must be at least 1"
opt_run=${opt_run:-$(basename "$opt_workdir")}
here=$(dirname "$0")

# pass KEY...: those options that were given, as arguments for another script, into PASSED.
pass() {
  local key variable
  PASSED=("--name=$opt_name" "--slices=$opt_slices" "${WHERE[@]}")
  [ -z "$DRY_RUN" ] || PASSED+=(--dry-run)
  for key in "$@"; do
    variable=opt_${key//-/_}
    case $key in
      spot | reserved) [ -z "${!variable}" ] || PASSED+=("--$key") ;;
      *) [ -z "${!variable}" ] || PASSED+=("--$key=${!variable}") ;;
    esac
  done
}

once() {
  pass type spot reserved wait runtime
  "$here/create.sh" "${PASSED[@]}" --replace || return
  pass data
  "$here/setup.sh" "${PASSED[@]}" || return
  pass config workdir data run libtpu-flags
  "$here/launch.sh" "${PASSED[@]}" ${ENVIRONMENT[@]+"${ENVIRONMENT[@]/#/--env=}"} ${REST[@]+-- "${REST[@]}"}
}

# Exit status of the run: 0 once it has ended well, 75 if a signal stopped it; nothing while it runs or the slice is gone.
ended() {
  local first
  first=$(nodes | head -n 1)
  gcloud compute tpus tpu-vm ssh "$first" "${WHERE[@]}" --worker=0 \
    "--command=cat lacy_runs/$(printf %q "$opt_run")/exit 2>/dev/null || true" 2>/dev/null | tail -n 1
}

if [ "$opt_watch" = 0 ] || [ -n "$DRY_RUN" ]; then
  once
  exit
fi
failures=0
while true; do
  # A slice that is taken away between two steps is no reason to stop watching.
  once || say "that did not work; trying again in $opt_watch minutes"
  sleep $((opt_watch * ${LACY_MINUTE_S:-60}))
  status=$(ended) || status="" # A slice that is gone cannot be asked.
  [ -n "$status" ] || continue
  if [ "$status" = 0 ]; then
    say "$opt_run has ended well"
    exit 0
  fi
  again=$(python3 "$ROOT/lacy_jax/errors.py" "$status") # The one table of statuses.
  [ "$again" != free ] || continue
  failures=$((failures + 1))
  [ "$again" = yes ] && [ "$failures" -lt "$opt_failures" ] || die "$opt_run has failed $failures times, the last with status \
$status; see why: tpu_scripts/logs.sh --name=$opt_name ${WHERE[*]} --run=$opt_run; the slices stay up: \
tpu_scripts/teardown.sh --name=$opt_name ${WHERE[*]}"
done
