#!/usr/bin/env bash
# The same through Google Kubernetes Engine: node pools of TPU slices and a JobSet of one job per slice.
#
#   tpu_scripts/gke.sh pool    --cluster=C --zone=us-west4-a --name=lacy --type=v5litepod-16 --spot
#   tpu_scripts/gke.sh submit  --name=lacy --type=v5litepod-16 --image=REGION-docker.pkg.dev/P/R/lacy:TAG \
#       --config=experiments/paper_334m.py:lacy --workdir=gs://BUCKET/paper_334m/lacy -- --config.dataset.path=/data/dataset
#   tpu_scripts/gke.sh logs    --name=lacy --follow
#   tpu_scripts/gke.sh status  --name=lacy
#   tpu_scripts/gke.sh resume  (options of submit)       # delete what is left of the JobSet, submit it again
#   tpu_scripts/gke.sh delete  --name=lacy               # the JobSet; --pool too: the node pools, with --cluster --zone
#   tpu_scripts/gke.sh xpk     --cluster=C (options of submit)   # the same workload through xpk
#
#   --name=NAME         of JobSet and node pools (NAME-0, NAME-1, ...)
#   --type=TYPE         slice: v5litepod-16, v5p-128, v6e-64, v4-32
#   --slices=N          number of slices (multislice), default 1
#   --image=IMAGE       made from tpu_scripts/Dockerfile
#   --data=PATH:CLAIM   mount a PersistentVolumeClaim that holds the dataset, read-only, at PATH
#   --service-account=S Kubernetes service account that may write the bucket
#   --restarts=N        times the JobSet starts over by itself after a preemption or failure, default 100
#   --cluster=C --zone=Z [--project=P]   of the cluster
#   --spot | --reserved=RESERVATION      for pool; submit --spot places the job on spot nodes
#   --follow            logs: stay and show new lines
#   --dry-run           print commands and manifest, run none
#   --help

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
opt_cluster="" opt_type="" opt_image="" opt_config="" opt_workdir="" opt_data="" opt_service_account="" opt_restarts=100
opt_spot="" opt_reserved="" opt_follow="" opt_pool=""
action=${1:-}
case $action in
  pool | submit | logs | status | resume | delete | xpk) shift ;;
  --help)
    usage
    exit 0
    ;;
  *) die "first argument '$action': expected pool, submit, logs, status, resume, delete or xpk; see --help" ;;
esac
parse "cluster type image config workdir data service-account restarts reserved" "spot follow pool" "$@"
need name
where

# Accelerator name, topology, hosts, machine type and chips per host of --type.
slice() {
  local chips=${opt_type##*-}
  PER_HOST=4
  case $opt_type in
    v5litepod-*) ACCELERATOR=tpu-v5-lite-podslice MACHINE=ct5lp-hightpu-4t ;;
    v6e-*) ACCELERATOR=tpu-v6e-slice MACHINE=ct6e-standard-4t ;;
    v5p-*) ACCELERATOR=tpu-v5p-slice MACHINE=ct5p-hightpu-4t chips=$((chips / 2)) ;;
    v4-*) ACCELERATOR=tpu-v4-podslice MACHINE=ct4p-hightpu-4t chips=$((chips / 2)) ;;
    *) die "--type=$opt_type: expected v4-N, v5litepod-N, v5p-N or v6e-N" ;;
  esac
  case $opt_type:$chips in
    v5litepod-*:4 | v6e-*:4) TOPOLOGY=2x2 ;;
    v5litepod-*:8 | v6e-*:8) TOPOLOGY=2x4 ;;
    v5litepod-*:16 | v6e-*:16) TOPOLOGY=4x4 ;;
    v5litepod-*:32 | v6e-*:32) TOPOLOGY=4x8 ;;
    v5litepod-*:64 | v6e-*:64) TOPOLOGY=8x8 ;;
    v5litepod-*:128 | v6e-*:128) TOPOLOGY=8x16 ;;
    v5litepod-*:256 | v6e-*:256) TOPOLOGY=16x16 ;;
    *:4) TOPOLOGY=2x2x1 ;;
    *:8) TOPOLOGY=2x2x2 ;;
    *:16) TOPOLOGY=2x2x4 ;;
    *:32) TOPOLOGY=2x4x4 ;;
    *:64) TOPOLOGY=4x4x4 ;;
    *:128) TOPOLOGY=4x4x8 ;;
    *:256) TOPOLOGY=4x8x8 ;;
    *) die "--type=$opt_type: no such slice" ;;
  esac
  HOSTS=$((chips / PER_HOST))
}

# One JSON string per argument, joined by commas: valid YAML too.
quoted() {
  local word out=""
  for word in "$@"; do
    word=${word//\\/\\\\}
    out+=", \"${word//\"/\\\"}\""
  done
  printf '%s' "${out#, }"
}

# Status 75 of a run stopped by a signal: to Kubernetes a preempted pod has failed, not succeeded.
training() { printf '%s\n' lacy train --distributed --stopped-exit=75 "--config=$opt_config" "--workdir=$opt_workdir" ${REST[@]+"${REST[@]}"}; }

manifest() {
  local words
  mapfile -t words < <(training)
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $opt_name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $opt_restarts
  replicatedJobs:
    - name: slice
      replicas: $opt_slices
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
${opt_service_account:+              serviceAccountName: $opt_service_account
}              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
${opt_spot:+                cloud.google.com/gke-spot: \"true\"
}              containers:
                - name: train
                  image: $opt_image
                  command: [$(quoted "${words[@]}")]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  resources:
                    limits:
                      google.com/tpu: $PER_HOST
YAML
  [ -z "$opt_data" ] || cat <<YAML
                  volumeMounts:
                    - name: data
                      mountPath: ${opt_data%%:*}
                      readOnly: true
              volumes:
                - name: data
                  persistentVolumeClaim:
                    claimName: ${opt_data#*:}
                    readOnly: true
YAML
}

submit() {
  need type image config workdir
  [[ $opt_workdir == gs://* ]] || die "--workdir=$opt_workdir: must be gs://..., which all workers can write"
  [ -f "$ROOT/${opt_config%%:*}" ] || die "--config=$opt_config: no such file in the repository"
  [[ -z $opt_data || $opt_data == /*:?* ]] || die "--data=$opt_data: expected /PATH:CLAIM"
  slice
  if [ -n "$DRY_RUN" ]; then
    manifest
    run kubectl apply --filename=-
  else
    manifest | kubectl apply --filename=- || die "kubectl could not submit $opt_name"
  fi
}

# Names of the node pools that exist already, one a line.
pools() {
  [ -n "$DRY_RUN" ] || gcloud container node-pools list "--cluster=$opt_cluster" "${WHERE[@]}" '--format=value(name)' ||
    die "gcloud cannot list the node pools of $opt_cluster"
}

case $action in
  submit) submit ;;
  resume)
    run kubectl delete jobset "$opt_name" --ignore-not-found
    submit
    ;;
  pool)
    need cluster zone type
    slice
    there=$(pools)
    for ((i = 0; i < opt_slices; i++)); do
      if grep -qx "$opt_name-$i" <<<"$there"; then
        say "node pool $opt_name-$i exists already"
        continue
      fi
      arguments=("--cluster=$opt_cluster" "${WHERE[@]}" "--machine-type=$MACHINE" "--num-nodes=$HOSTS")
      [ "$HOSTS" = 1 ] || arguments+=("--tpu-topology=$TOPOLOGY")
      [ -z "$opt_spot" ] || arguments+=(--spot)
      [ -z "$opt_reserved" ] || arguments+=(--reservation-affinity=specific "--reservation=$opt_reserved")
      run gcloud container node-pools create "$opt_name-$i" "${arguments[@]}"
    done
    ;;
  logs)
    follow=()
    [ -z "$opt_follow" ] || follow=(--follow)
    run kubectl logs "--selector=jobset.sigs.k8s.io/jobset-name=$opt_name,batch.kubernetes.io/job-completion-index=0" \
      --container=train --prefix --tail=50 ${follow[@]+"${follow[@]}"}
    ;;
  status) run kubectl get jobsets,pods "--selector=jobset.sigs.k8s.io/jobset-name=$opt_name" ;;
  delete)
    run kubectl delete jobset "$opt_name" --ignore-not-found
    if [ -n "$opt_pool" ]; then
      need cluster zone
      there=$(pools)
      for ((i = 0; i < opt_slices; i++)); do
        [ -z "$DRY_RUN" ] && ! grep -qx "$opt_name-$i" <<<"$there" && continue
        run gcloud container node-pools delete "$opt_name-$i" "--cluster=$opt_cluster" "${WHERE[@]}" --quiet
      done
    fi
    ;;
  xpk)
    need cluster zone type image config workdir
    mapfile -t words < <(training)
    run xpk workload create "--cluster=$opt_cluster" "${WHERE[@]}" "--workload=$opt_name" "--tpu-type=$opt_type" \
      "--num-slices=$opt_slices" "--docker-image=$opt_image" "--max-restarts=$opt_restarts" \
      "--command=$(printf '%q ' "${words[@]}")"
    ;;
esac
