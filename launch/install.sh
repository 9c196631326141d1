# shellcheck shell=bash
# Sourced by the other launchers; sets ROOT and defines install_agentflow.
#
#   install_agentflow EXTRA [locked]     e.g. install_agentflow test
#
# Makes a virtual environment where there is none, installs this checkout into
# it (editable) with an extra of pyproject.toml ('' for none), and sets VENV_PYTHON.
# With `locked`, at the versions of requirements_lock.txt; otherwise at the newest that
# requirements.txt allows. What is installed already is kept, until one of these files
# changes.
#
# Environment:
#   PYTHON           the Python that makes the environment (3.11 or later)
#   AGENTFLOW_VENV   where the environment lies (default: .venv of the checkout)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

_find_python() {
  local candidate candidates=(python3 python3.11 python3.12 python3.13)
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    # Run, not looked up: a shim may stand for a version that is not there.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or later is needed, and ${PYTHON:-python3} is not" \
    "that; install it, or name one: PYTHON=/path/to/python bash $0" >&2
  return 1
}

# What an installation depends on. An editable one knows the checkout's path.
_fingerprint() {
  (
    cd "$ROOT" || exit
    cat pyproject.toml requirements.txt
    if [[ -n "$2" ]]; then cat requirements_lock.txt; fi
    echo "$ROOT [$1] $2"
  ) | cksum
}

install_agentflow() {
  local extra="$1" locked="${2:-}" versions=() venv="${AGENTFLOW_VENV:-$ROOT/.venv}" python stamp
  [[ "$venv" == /* ]] || venv="$PWD/$venv"
  VENV_PYTHON="$venv/bin/python"
  stamp="$venv/.agentflow_installed${extra:+_$extra}"
  if [[ -f "$stamp" && "$(<"$stamp")" == "$(_fingerprint "$extra" "$locked")" ]]; then
    return
  fi
  # Making it again completes an environment whose making was interrupted.
  if ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
    python="$(_find_python)"
    echo "Making a virtual environment in $venv ..." >&2
    if ! "$python" -m venv "$venv"; then
      echo "error: $python cannot make a virtual environment (on Debian and" \
        "Ubuntu: apt-get install python3-venv)" >&2
      return 1
    fi
  fi
  echo "Installing (some minutes the first time) ..." >&2
  if [[ -n "$locked" ]]; then
    versions=(--constraint "$ROOT/requirements_lock.txt")
  fi
  "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check \
    ${versions[@]+"${versions[@]}"} --editable "$ROOT${extra:+[$extra]}"
  _fingerprint "$extra" "$locked" >"$stamp"
}
