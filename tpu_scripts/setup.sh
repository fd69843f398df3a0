#!/usr/bin/env bash
# Install lacy_jax, as committed here, on every worker of every slice; copy the dataset. Safe to repeat: a worker that
# has this commit is left alone, and only new files are copied.
#
#   tpu_scripts/setup.sh --name=lacy --zone=us-west4-a --data=gs://BUCKET/paper/dataset
#
#   --name=NAME --zone=ZONE [--project=PROJECT] [--slices=N]   as for create.sh
#   --data=gs://...   a folder made by `lacy prepare`, copied to ~/lacy_data on every worker
#   --dry-run         print the commands, run none
#   --help

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
opt_data=""
parse "data" "" "$@"
need name zone
where
require_active
commit=$(git -C "$ROOT" rev-parse HEAD 2>/dev/null) || die "$ROOT is no git checkout; setup ships a commit"
if [ -n "$(git -C "$ROOT" status --porcelain --untracked-files=no)" ]; then
  say "note: changes that are not committed are not shipped; shipping $commit"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git -C "$ROOT" archive --format=tar.gz --output="$folder/lacy.tar.gz" HEAD
cp "$ROOT/tpu_scripts/remote/install.sh" "$folder/lacy_install.sh"
for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$folder/lacy.tar.gz" "$folder/lacy_install.sh" "$node:" "${WHERE[@]}" --worker=all
done
on_workers all "bash lacy_install.sh $commit"
if [ -n "$opt_data" ]; then
  target="lacy_data/$(basename "$opt_data")"
  on_workers all "mkdir -p $target && gcloud storage rsync --recursive $(printf %q "$opt_data") $target"
fi
