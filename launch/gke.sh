#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as a JobSet.
#
#   bash launch/gke.sh run --name=N --image=IMAGE --accelerator=tpu-v5p-slice \
#       --topology=2x2x4 [--slices=1] [--chips_a_host=4] -- FLAGS
#   bash launch/gke.sh status|logs|delete --name=N
#   bash launch/gke.sh build --image=IMAGE          docker build and push
#
# IMAGE comes of launch/Dockerfile. FLAGS go to python -m agentflow_jax.train and
# name a --workdir=gs://BUCKET/RUN. The JobSet starts all hosts again when one fails,
# up to --restarts times (20), and any number of times when one is preempted or told to
# stop (exit code 75); exit codes 2 and 3, a mistake in flags and a run that stopped
# itself, are final. The cluster needs the JobSet controller, version 0.10 or newer;
# kubectl points to it.
#
#   --secret=NAME            a Kubernetes Secret whose keys are environment variables
#   --service_account=NAME   the Kubernetes service account of the pods
#   --queue=NAME             the local queue of Kueue that admits the JobSet
#   --spot                   run on spot nodes
#   --cpus=N --memory=SIZE   what each host requests, such as --cpus=100 --memory=200Gi
#   --dry_run                print the manifest or the commands
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' image='' accelerator='' topology='' slices=1 chips=4 restarts=20
secret='' account='' queue='' cpus='' memory='' spot=false action="${1:-}"
case "$action" in
  --help | -h | '')
    usage
    exit 0
    ;;
  run | status | logs | delete | build) shift ;;
  *) fail "unknown action $action" ;;
esac
while (($#)); do
  case "$1" in
    --help | -h)
      usage
      exit 0
      ;;
    --name=*) name="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --topology=*) topology="${1#*=}" ;;
    --slices=*) slices="${1#*=}" ;;
    --chips_a_host=*) chips="${1#*=}" ;;
    --restarts=*) restarts="${1#*=}" ;;
    --secret=*) secret="${1#*=}" ;;
    --service_account=*) account="${1#*=}" ;;
    --queue=*) queue="${1#*=}" ;;
    --cpus=*) cpus="${1#*=}" ;;
    --memory=*) memory="${1#*=}" ;;
    --spot) spot=true ;;
    --dry_run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1" ;;
  esac
  shift
done

quoted() { # As a YAML string.
  local s="${1//\\/\\\\}"
  printf '"%s"' "${s//\"/\\\"}"
}

manifest() {
  local hosts=1 n
  for n in ${topology//x/ }; do hosts=$((hosts * n)); done
  hosts=$((hosts / chips))
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
EOF
  if [[ -n "$queue" ]]; then
    cat <<EOF
  labels:
    kueue.x-k8s.io/queue-name: $queue
EOF
  fi
  # A job says which of its rules a pod met: 0 is final, 1 and 2 do not count.
  cat <<EOF
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: ["matching FailJob rule at index 0$"]
    - action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: ["matching FailJob rule at index [12]$"]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [2, 3]
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [75]
          - action: FailJob
            onPodConditions:
            - type: DisruptionTarget
              status: "True"
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
EOF
  if [[ -n "$account" ]]; then echo "            serviceAccountName: $account"; fi
  cat <<EOF
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
EOF
  if "$spot"; then
    cat <<EOF
              cloud.google.com/gke-spot: "true"
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: "true"
              effect: NoSchedule
EOF
  fi
  cat <<EOF
            containers:
            - name: train
              image: $image
              command: [python, -m, agentflow_jax.train]
              args:
              - "--distributed=on"
EOF
  local flag
  for flag in "$@"; do printf '              - %s\n' "$(quoted "$flag")"; done
  if [[ -n "$secret" ]]; then
    cat <<EOF
              envFrom:
              - secretRef:
                  name: $secret
EOF
  fi
  cat <<EOF
              resources:
                limits:
                  google.com/tpu: $chips
EOF
  if [[ -n "$cpus$memory" ]]; then echo '                requests:'; fi
  if [[ -n "$cpus" ]]; then echo "                  cpu: \"$cpus\""; fi
  if [[ -n "$memory" ]]; then echo "                  memory: \"$memory\""; fi
}

if [[ "$action" == build ]]; then
  [[ -n "$image" ]] || fail "--image is missing"
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
  do_ docker build --file="$root/launch/Dockerfile" --tag="$image" "$root"
  do_ docker push "$image"
  exit 0
fi
[[ -n "$name" ]] || fail "--name is missing"
# Names of pods are made of it: NAME-slice-SLICE-HOST-SUFFIX.
check_name --name "$name" 40
if [[ -n "$secret" ]]; then check_name --secret "$secret"; fi
if [[ -n "$account" ]]; then check_name --service_account "$account"; fi
if [[ -n "$queue" ]]; then check_name --queue "$queue"; fi
case "$action" in
  run)
    (($#)) || fail "the train program's flags are missing: give them after --"
    for need in image accelerator topology; do
      [[ -n "${!need}" ]] || fail "--$need is missing"
    done
    [[ "$topology" =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "--topology is not like 2x2x4"
    [[ "$slices" =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices is no number above 0"
    [[ "$chips" =~ ^[1-9][0-9]*$ ]] || fail "--chips_a_host=$chips is no number above 0"
    [[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts=$restarts is no number"
    [[ "$cpus" =~ ^([0-9]+(\.[0-9]+|m)?)?$ ]] || fail "--cpus=$cpus is not like 100"
    [[ "$memory" =~ ^([0-9]+([KMGT]i?)?)?$ ]] || fail "--memory=$memory is not like 200Gi"
    total=1
    for side in ${topology//x/ }; do total=$((total * side)); done
    ((total && total % chips == 0)) ||
      fail "--topology=$topology has $total chips, not some hosts of --chips_a_host=$chips"
    check_run gs "$@"
    if "$dry_run"; then manifest "$@"; else manifest "$@" | kubectl apply -f -; fi
    ;;
  status) do_ kubectl get jobset "$name" ;;
  logs)
    do_ kubectl logs --follow --tail=100 \
      --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete) do_ kubectl delete jobset "$name" ;;
esac
