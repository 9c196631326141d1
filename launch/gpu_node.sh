#!/usr/bin/env bash
# Trains on GPU nodes without a scheduler: run it on each of them.
#
#   bash launch/gpu_node.sh -- FLAGS                                     one node
#   bash launch/gpu_node.sh --nodes=4 --node=0 --coordinator=HOST:PORT -- FLAGS
#
# Installs, then starts python -m agentflow_jax.train FLAGS, one process for all
# GPUs of the node, again where that goes on with the run (launch/retry.sh).
# HOST:PORT is of node 0; FLAGS name a --workdir that all nodes share. Keys of
# endpoints come from the environment.
#
#   --dry_run   print the commands
#
# Environment: PYTHON, AGENTFLOW_VENV (see launch/install.sh)
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 node=0 coordinator=''
while (($#)); do
  case "$1" in
    --help | -h)
      usage
      exit 0
      ;;
    --nodes=*) nodes="${1#*=}" ;;
    --node=*) node="${1#*=}" ;;
    --coordinator=*) coordinator="${1#*=}" ;;
    --dry_run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1" ;;
  esac
  shift
done
(($#)) || fail "the train program's flags are missing: give them after --"
for count in "$nodes" "$node"; do
  [[ "$count" =~ ^[0-9]+$ ]] || fail "--nodes and --node are numbers, not $count"
done
((node < nodes)) || fail "--node=$node is none of --nodes=$nodes"
check_run any "$@"
more=()
if ((nodes > 1)); then
  [[ -n "$coordinator" ]] || fail "--coordinator=HOST:PORT is missing"
  more=(--coordinator="$coordinator" --num_processes="$nodes" --process_id="$node")
fi

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
python="${AGENTFLOW_VENV:-$here/../.venv}/bin/python"
do_ bash "$here/setup_host.sh" --accelerator=gpu
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
cd "$here/.."
do_ exec bash "$here/retry.sh" -- "$python" -m agentflow_jax.train \
  ${more[@]+"${more[@]}"} "$@"
