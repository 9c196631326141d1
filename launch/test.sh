#!/usr/bin/env bash
# Makes a virtual environment, installs with the [test] extra, runs the tests.
#
#   bash launch/test.sh [--install_only] [-- PYTEST ARGUMENTS]
#
# for example: -- tests/core -x     or, the slow ones: -- -m slow
# The tests run in a process a core, four at most; -- -n 0 runs them in one.
#
# Environment: PYTHON, AGENTFLOW_VENV (see launch/install.sh)
set -euo pipefail

install_only=false
while (($#)); do
  case "$1" in
    --help | -h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --install_only) install_only=true ;;
    --)
      shift
      break
      ;;
    *)
      echo "error: unknown argument $1; pytest's come after --; see --help" >&2
      exit 2
      ;;
  esac
  shift
done

source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_agentflow test
if "$install_only"; then exit 0; fi
cd "$ROOT"
exec "$VENV_PYTHON" -m pytest --numprocesses=logical --maxprocesses=4 \
  --dist=loadfile "$@"
