#!/usr/bin/env bash
# Ask for TPU slices as a queued resource, and wait until they are there. Safe to repeat: what exists is kept.
#
#   tpu_scripts/create.sh --name=lacy --zone=us-west4-a --type=v5litepod-16 --spot
#
#   --name=NAME      of the queued resource; its VMs are NAME, or NAME-0, NAME-1, ... with several slices
#   --zone=ZONE      where; --project=PROJECT if not gcloud's default
#   --type=TYPE      accelerator type of one slice: v5litepod-16, v5p-128, v6e-64, v4-32
#   --slices=N       number of slices (multislice), default 1
#   --spot           cheaper, may be taken away at any time (resume.sh goes on); or
#   --reserved       from your reservation; neither: on demand
#   --replace        delete one that has FAILED or is SUSPENDED, and ask again
#   --wait=MINUTES   how long to wait for it to become ACTIVE, default 60; 0 = do not wait
#   --runtime=NAME   TPU VM image, default the one for the chip
#   --dry-run        print the commands, run none
#   --help

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
opt_type="" opt_spot="" opt_reserved="" opt_replace="" opt_wait=60 opt_runtime=""
parse "type wait runtime" "spot reserved replace" "$@"
need name zone type
where
[ -z "$opt_spot" ] || [ -z "$opt_reserved" ] || die "--spot and --reserved exclude each other"
case $opt_type in
  v4-*) image=tpu-ubuntu2204-base ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) die "--type=$opt_type: expected v4-N, v5litepod-N, v5p-N or v6e-N" ;;
esac

request() {
  local arguments=("--accelerator-type=$opt_type" "--runtime-version=${opt_runtime:-$image}")
  if [ "$opt_slices" = 1 ]; then
    arguments+=("--node-id=$opt_name")
  else
    arguments+=("--node-count=$opt_slices" "--node-prefix=$opt_name")
  fi
  [ -z "$opt_spot" ] || arguments+=(--spot)
  [ -z "$opt_reserved" ] || arguments+=(--reserved)
  run gcloud compute tpus queued-resources create "$opt_name" "${WHERE[@]}" "${arguments[@]}"
}

now=$(state NONE)
for ((waited = 0; waited < opt_wait * 60; waited += ${LACY_POLL_S:-30})); do
  [ "$now" = DELETING ] || break
  say "$opt_name is DELETING; asking again once it is gone"
  sleep "${LACY_POLL_S:-30}"
  now=$(state NONE)
done
case $now in
  ACTIVE)
    say "$opt_name is ACTIVE already"
    exit 0
    ;;
  NONE) request ;;
  FAILED | SUSPENDED | SUSPENDING)
    [ -n "$opt_replace" ] || die "$opt_name is $now: give --replace to delete it and ask again"
    run gcloud compute tpus queued-resources delete "$opt_name" "${WHERE[@]}" --force --quiet
    request
    ;;
  DELETING) die "$opt_name is still being deleted: run the same command once it is gone" ;;
  *) say "$opt_name is $now already" ;;
esac
[ -z "$DRY_RUN" ] || exit 0

for ((waited = 0; waited < opt_wait * 60; waited += ${LACY_POLL_S:-30})); do
  now=$(state NONE)
  case $now in
    ACTIVE)
      say "$opt_name is ACTIVE"
      exit 0
      ;;
    FAILED | SUSPENDED | NONE) die "$opt_name is $now; see: gcloud compute tpus queued-resources describe $opt_name ${WHERE[*]}" ;;
  esac
  say "$opt_name is $now, waited $((waited / 60)) minutes"
  sleep "${LACY_POLL_S:-30}"
done
[ "$opt_wait" = 0 ] || die "$opt_name is still $now after $opt_wait minutes; it stays in the queue: run the same command to wait on"
