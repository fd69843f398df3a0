#!/usr/bin/env bash
# Runs on a worker: `start.sh RUN COMMAND...` starts a command that outlives the connection, once per RUN at a time.
# Its output goes to ~/lacy_runs/RUN/log.txt, its exit status to ~/lacy_runs/RUN/exit.
set -euo pipefail
folder=$HOME/lacy_runs/$1
shift
mkdir -p "$folder"
# After a reboot the number may be another process's.
if [ -f "$folder/pid" ] && grep -qs "lacy_runs" "/proc/$(cat "$folder/pid")/cmdline"; then
  echo "already running, process $(cat "$folder/pid")"
  exit 0
fi
rm -f "$folder/exit"
cd "$HOME/lacy_jax"
# shellcheck disable=SC2016  # Expanded by the inner shell.
nohup setsid bash -c '"${@:2}"; echo $? >"$1/exit.tmp"; mv "$1/exit.tmp" "$1/exit"' run "$folder" "$@" \
  >>"$folder/log.txt" 2>&1 </dev/null &
echo $! >"$folder/pid"
echo "started, process $!"
