#!/usr/bin/env bash
# Makes a virtual environment, installs with the [test] extra, runs the tests.
#
#   bash launch/test.sh [--install_only] [-- PYTEST ARGUMENTS]
#
# for example: -- tests/core -x     or, the slow ones: -- -m slow
# The tests run in two processes a core, since many wait for others, and in four at most;
# -- -n 0 runs them in one.
#
# Without arguments of pytest, tests that compile much and compare within tolerances
# come first, with programs that XLA hardly optimises (see tests/conftest.py). All
# others, and whatever arguments name, run with programs as they are in use. What
# compiles for 0.3 s or more is compiled once for all processes of one call.
#
# Environment: PYTHON, AGENTFLOW_VENV (see launch/install.sh);
#   JAX_COMPILATION_CACHE_DIR keeps compiled programs for later calls, too
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
if [[ -z "${JAX_COMPILATION_CACHE_DIR:-}" ]]; then
  JAX_COMPILATION_CACHE_DIR="$(mktemp -d)"
  trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR"' EXIT
fi
export JAX_COMPILATION_CACHE_DIR
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3
# Hundreds of processes read the same modules. Keeping them compiled saves half a minute.
unset PYTHONDONTWRITEBYTECODE
cores="$("$VENV_PYTHON" -c 'import os; print(os.cpu_count())')"
run_pytest() {
  "$VENV_PYTHON" -m pytest --numprocesses=$((2 * cores)) --maxprocesses=4 \
    --dist=loadfile --no-loadscope-reorder "$@"
}
if (($#)); then
  run_pytest "$@"
  exit
fi
quick="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
quick="${XLA_FLAGS:-} $quick"
# XLA ends a process over a flag that it does not know (any more).
if ! JAX_PLATFORMS=cpu XLA_FLAGS="$quick" "$VENV_PYTHON" -c \
  'import jax; jax.devices()' >/dev/null 2>&1; then
  run_pytest
  exit
fi
status=0
XLA_FLAGS="$quick" run_pytest -m "quick and not slow" || status=$?
run_pytest -m "not quick and not slow" || status=$?
exit "$status"
