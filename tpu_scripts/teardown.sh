#!/usr/bin/env bash
# Delete the slices, running or not; buckets are left alone. Safe to repeat.
#
#   tpu_scripts/teardown.sh --name=lacy --zone=us-west4-a
#
#   --name=NAME --zone=ZONE [--project=PROJECT]   as for create.sh
#   --dry-run   print the commands, run none
#   --help

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
parse "" "" "$@"
need name zone
where
now=$(state ACTIVE)
case $now in
  NONE | DELETING)
    say "$opt_name $([ "$now" = NONE ] && echo "does not exist" || echo "is being deleted already"); nothing to do"
    exit 0
    ;;
esac
run gcloud compute tpus queued-resources delete "$opt_name" "${WHERE[@]}" --force --quiet
[ -n "$DRY_RUN" ] || say "$opt_name is deleted; nothing more is billed for it"
