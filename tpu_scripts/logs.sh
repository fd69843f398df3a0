#!/usr/bin/env bash
# Show the log of a run, of worker 0 of each slice unless told otherwise.
#
#   tpu_scripts/logs.sh --name=lacy --zone=us-west4-a --run=lacy --follow
#
#   --name=NAME --zone=ZONE [--project=PROJECT] [--slices=N]   as for create.sh
#   --run=RUN       as for launch.sh
#   --worker=N      another worker, or all
#   --lines=N       last lines, default 50
#   --follow        stay and show new lines (one slice, one worker)
#   --dry-run       print the commands, run none
#   --help

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
opt_run="" opt_worker=0 opt_lines=50 opt_follow=""
parse "run worker lines" "follow" "$@"
need name zone run
where
[[ $opt_lines =~ ^[0-9]+$ ]] || die "--lines=$opt_lines: must be a number"
follow=""
if [ -n "$opt_follow" ]; then
  [ "$opt_worker" != all ] || die "--follow shows one worker: give --worker=N"
  opt_slices=1 follow="-F "
fi
require_active
on_workers "$opt_worker" "tail -n $opt_lines ${follow}lacy_runs/$(printf %q "$opt_run")/log.txt"
