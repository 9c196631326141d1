#!/usr/bin/env bash
# Installs, then trains and evaluates a small planner on GeoHop: the main job.
#
#   bash launch/quickstart.sh [FLAGS]
#
# FLAGS go to the train program, whose directory is the checkout, after
#   --config=experiments/quickstart.py --workdir=runs/quickstart
# for example: --config.seed=1 --workdir=runs/seed1
# The same command again goes on where the run was stopped.
# Results: WORKDIR/report.html and WORKDIR/summary.json
#
# Environment: PYTHON, AGENTFLOW_VENV (see launch/install.sh)
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
  exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_agentflow ''
cd "$ROOT"
exec "$VENV_PYTHON" -m agentflow_jax.train \
  --config=experiments/quickstart.py --workdir=runs/quickstart "$@"
