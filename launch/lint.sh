#!/usr/bin/env bash
# Runs ruff (lint and format) and pyright (types), as CI does.
#
#   bash launch/lint.sh
#
# Installs with the [test] extra, so that pyright sees all that is imported, and
# both programs, at the versions of the group `lint` in pyproject.toml, which holds
# their settings, too. Prints what they find, and ends with 1 if that is anything.
#
# Environment: PYTHON, AGENTFLOW_VENV (see launch/install.sh)
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if (($#)); then
  if [[ "$1" == --help || "$1" == -h ]]; then
    usage
    exit 0
  fi
  fail "unknown argument $1"
fi

source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_agentflow test
install() { "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check "$@"; }
# Older releases of pip know no dependency groups.
if ! { install 'pip>=25.1' && install --group "$ROOT/pyproject.toml:lint"; }; then
  echo "error: ruff and pyright cannot be installed, so nothing was checked; is the" \
    "package index reachable?" >&2
  exit 1
fi
cd "$ROOT"
status=0
"$VENV_PYTHON" -m ruff check || status=1
"$VENV_PYTHON" -m ruff format --diff --quiet || status=1
"$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON" || status=1
exit "$status"
