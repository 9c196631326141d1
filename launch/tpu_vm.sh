#!/usr/bin/env bash
# Trains on a Cloud TPU slice (queued resources, every worker).
#
#   bash launch/tpu_vm.sh create --name=N --zone=Z --type=v5p-32 [--spot|--reserved]
#   bash launch/tpu_vm.sh run    --name=N --zone=Z -- FLAGS
#   bash launch/tpu_vm.sh status|logs|stop|delete --name=N --zone=Z
#
# run waits until the slice is there, copies the commit that is checked out to all
# workers, installs it, and starts
#   python -m agentflow_jax.train --distributed=on FLAGS
# on each, again where that goes on with the run (launch/retry.sh); FLAGS name a
# --workdir=gs://BUCKET/RUN. What is not committed in git is not sent. While a run is
# live on a worker, run ends with an error before it changes anything there; stop
# tells the run to commit, and waits until it has ended.
#
#   --project=P     default: gcloud's own
#   --runtime=R     TPU software version (default: by --type)
#   --secret=NAME   an environment variable of the run, from the secret of that name
#                   in Secret Manager; may be repeated
#   --wait=SECONDS  of run: the longest wait for the slice (default 86400)
#   --dry_run       print the commands
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' zone='' type='' project='' runtime='' provision='' wait=86400
secrets=() action="${1:-}"
case "$action" in
  --help | -h | '')
    usage
    exit 0
    ;;
  create | run | status | logs | stop | delete) shift ;;
  *) fail "unknown action $action" ;;
esac
while (($#)); do
  case "$1" in
    --help | -h)
      usage
      exit 0
      ;;
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --secret=*) secrets+=("${1#*=}") ;;
    --wait=*) wait="${1#*=}" ;;
    --spot | --reserved) provision="$1" ;;
    --dry_run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1" ;;
  esac
  shift
done
[[ -n "$name" ]] || fail "--name is missing"
[[ -n "$zone" ]] || fail "--zone is missing"
check_name --name "$name"
[[ "$wait" =~ ^[0-9]+$ ]] || fail "--wait=$wait is no number of seconds"
for secret in ${secrets[@]+"${secrets[@]}"}; do
  [[ "$secret" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] ||
    fail "--secret=$secret: it has to be the name of an environment variable"
done

where=(--zone="$zone")
if [[ -n "$project" ]]; then where+=(--project="$project"); fi

on_workers() { # WORKER COMMAND
  do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

describe() {
  do_ gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)'
}

# Waits until the slice is there; returns an error where it never will be.
await_slice() {
  local now before=none waited=0
  while :; do
    now="$(describe)" || return 1
    [[ "$now" == "$before" ]] || echo "$name is $now" >&2
    before="$now"
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING)
        echo "error: $name is $now, and will not become ACTIVE; delete it, and" \
          "create it again" >&2
        return 1
        ;;
    esac
    if ((waited >= wait)); then
      echo "error: $name is $now after $waited s; see --wait" >&2
      return 1
    fi
    sleep 30
    waited=$((waited + 30))
  done
}

case "$action" in
  create)
    [[ -n "$type" ]] || fail "--type is missing"
    if [[ -z "$runtime" ]]; then
      case "$type" in
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v5litepod-* | v5e-*) runtime=v2-alpha-tpuv5-lite ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        *) fail "--runtime is missing: none is known for --type=$type" ;;
      esac
    fi
    do_ gcloud compute tpus queued-resources create "$name" --node-id="$name" \
      "${where[@]}" --accelerator-type="$type" --runtime-version="$runtime" \
      ${provision:+"$provision"}
    ;;
  run)
    (($#)) || fail "the train program's flags are missing: give them after --"
    check_run gs "$@"
    if "$dry_run"; then describe; else await_slice; fi
    # shellcheck disable=SC2016  # The worker's host name.
    on_workers all 'if pgrep -f "[l]aunch/retry.sh" >/dev/null; then echo "error: a run is live on $(hostname): stop it first (launch/tpu_vm.sh stop)" >&2; exit 1; fi'
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
    archive="$(mktemp -d)/agentflow_jax.tar.gz"
    trap 'rm -rf "$(dirname "$archive")"' EXIT
    do_ git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    do_ gcloud compute tpus tpu-vm scp "$archive" "$name:agentflow_jax.tar.gz" \
      "${where[@]}" --worker=all
    # Images with an older Python get one beside it.
    on_workers all 'python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" || { sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv; }'
    # shellcheck disable=SC2016  # The worker's HOME.
    on_workers all 'rm -rf agentflow_jax && mkdir agentflow_jax && tar -xzf agentflow_jax.tar.gz -C agentflow_jax && AGENTFLOW_VENV=$HOME/agentflow_venv bash agentflow_jax/launch/setup_host.sh --accelerator=tpu'
    exports=''
    for secret in ${secrets[@]+"${secrets[@]}"}; do
      exports+="export $secret=\"\$(gcloud secrets versions access latest --secret=$secret)\" && "
    done
    on_workers all "${exports}cd agentflow_jax && { nohup setsid bash launch/retry.sh -- \$HOME/agentflow_venv/bin/python -m agentflow_jax.train --distributed=on $(printf '%q ' "$@")>\$HOME/train.log 2>&1 </dev/null & } && sleep 1"
    ;;
  status)
    describe
    ;;
  logs) on_workers 0 'tail -n 100 -F train.log' ;;
  stop)
    # shellcheck disable=SC2016  # The worker's host name.
    on_workers all 'pkill -TERM -f "[l]aunch/retry.sh" || exit 0; for i in $(seq 300); do pgrep -f "[l]aunch/retry.sh" >/dev/null || exit 0; sleep 1; done; echo "error: the run on $(hostname) has not ended" >&2; exit 1'
    ;;
  delete)
    do_ gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    ;;
esac
