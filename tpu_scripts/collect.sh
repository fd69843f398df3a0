#!/usr/bin/env bash
# Bring a run home: config, metrics, samples and report from its bucket, logs from its workers. Safe to repeat.
#
#   tpu_scripts/collect.sh --workdir=gs://BUCKET/paper_334m/lacy --to=runs/paper_334m/lacy
#   tpu_scripts/collect.sh --workdir=gs://... --to=... --name=lacy --zone=us-west4-a    # with the workers' logs
#
#   --workdir=gs://...   run directory
#   --to=DIR             local folder
#   --checkpoints        checkpoints too (gigabytes)
#   --name=NAME --zone=ZONE [--project=PROJECT] [--slices=N]   slices to fetch logs from, while they exist
#   --run=RUN            as for launch.sh, default: the last part of the workdir
#   --dry-run            print the commands, run none
#   --help

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
opt_workdir="" opt_to="" opt_checkpoints="" opt_run=""
parse "workdir to run" "checkpoints" "$@"
need workdir to
opt_run=${opt_run:-$(basename "$opt_workdir")}
run mkdir -p "$opt_to"
exclude=()
[ -n "$opt_checkpoints" ] || exclude=("--exclude=^checkpoints/.*")
run gcloud storage rsync --recursive "${exclude[@]}" "$opt_workdir" "$opt_to"
if [ -n "$opt_name" ]; then
  need zone
  where
  require_active
  for node in $(nodes); do
    run mkdir -p "$opt_to/logs"
    run gcloud compute tpus tpu-vm scp "$node:lacy_runs/$opt_run/log.txt" "$opt_to/logs/$node.txt" "${WHERE[@]}" --worker=0
  done
fi
