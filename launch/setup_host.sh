#!/usr/bin/env bash
# Installs on a host, with the jax that its accelerator needs, at the versions of
# requirements_lock.txt.
#
#   bash launch/setup_host.sh [--accelerator=auto|tpu|gpu|cpu] [--dry_run]
#
# auto looks for a TPU's device files, then for nvidia-smi. Released models (the
# extra `models`) and gs:// paths (`gcs`) can be read, too.
#
# Environment: PYTHON, AGENTFLOW_VENV (see launch/install.sh)
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

accelerator=auto
while (($#)); do
  case "$1" in
    --help | -h)
      usage
      exit 0
      ;;
    --accelerator=auto | --accelerator=tpu | --accelerator=gpu | --accelerator=cpu)
      accelerator="${1#*=}"
      ;;
    --dry_run) dry_run=true ;;
    *)
      fail "unknown argument $1"
      ;;
  esac
  shift
done

if [[ "$accelerator" == auto ]]; then
  accelerator=cpu
  if compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    accelerator=tpu
  elif command -v nvidia-smi >/dev/null; then
    accelerator=gpu
  fi
  echo "Found: $accelerator" >&2
fi
extra=models,gcs
if [[ "$accelerator" != cpu ]]; then extra="$extra,$accelerator"; fi

if "$dry_run"; then
  echo "install this checkout with the extras $extra"
  exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_agentflow "$extra" locked
"$VENV_PYTHON" -c 'import jax; print(jax.__version__)' >&2
echo "$VENV_PYTHON"
