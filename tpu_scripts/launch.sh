#!/usr/bin/env bash
# Start `lacy train` on every worker of every slice. Safe to repeat: a worker on which it runs is left alone, and a run
# that was interrupted goes on from its last checkpoint.
#
#   tpu_scripts/launch.sh --name=lacy --zone=us-west4-a --config=experiments/paper_334m.py:lacy \
#       --workdir=gs://BUCKET/paper_334m/lacy --data=gs://BUCKET/paper/dataset -- --config.train.steps=1000
#
#   --name=NAME --zone=ZONE [--project=PROJECT] [--slices=N]   as for create.sh
#   --config=FILE.py[:ARG]   experiment, a path inside the repository
#   --workdir=gs://...       run directory; the workers share no disk, so it is in a bucket
#   --data=gs://...          the folder that setup.sh copied
#   --run=RUN                name of the log on the workers, default: the last part of the workdir
#   --libtpu-flags=FLAGS     LIBTPU_INIT_ARGS of the workers, as `lacy plan` takes them
#   --env=NAME=VALUE         of the workers; may be repeated
#   --dry-run                print the commands, run none
#   --help
# What follows -- goes to `lacy train` as it is. A run stopped by a signal ends with status 75: not yet done.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
opt_config="" opt_workdir="" opt_data="" opt_run="" opt_libtpu_flags=""
parse "config workdir data run libtpu-flags env" "" "$@"
need name zone config workdir
where
[[ $opt_workdir == gs://* ]] || die "--workdir=$opt_workdir: must be gs://..., which all workers can write"
[ -f "$ROOT/${opt_config%%:*}" ] || die "--config=$opt_config: no such file in the repository"
require_active
opt_run=${opt_run:-$(basename "$opt_workdir")}
words=("\$HOME/lacy_jax/.venv/bin/lacy" train --distributed --stopped-exit=75 "--config=$opt_config" "--workdir=$opt_workdir")
command="bash lacy_jax/tpu_scripts/remote/start.sh $(printf %q "$opt_run")"
[ -z "$opt_libtpu_flags" ] || ENVIRONMENT+=("LIBTPU_INIT_ARGS=$opt_libtpu_flags")
[ ${#ENVIRONMENT[@]} = 0 ] || command+=" env$(printf ' %q' "${ENVIRONMENT[@]}")"
command+=" ${words[0]}$(printf ' %q' "${words[@]:1}")"
[ -z "$opt_data" ] || command+=" --config.dataset.path=\$HOME/lacy_data/$(printf %q "$(basename "$opt_data")")"
[ ${#REST[@]} = 0 ] || command+=$(printf ' %q' "${REST[@]}")
on_workers all "$command"
[ -n "$DRY_RUN" ] || say "started; follow it with: tpu_scripts/logs.sh --name=$opt_name ${WHERE[*]} --run=$opt_run --follow"
