# shellcheck shell=bash
# Sourced by the other launchers: what they say and how they run a command.
#
#   usage           prints the header of the launcher
#   fail MESSAGE    a mistake in the arguments: one line, exit code 2
#   do_ COMMAND...  runs it, or prints it where dry_run is true
#   check_name FLAG NAME [MOST]   fails where a cloud would refuse the name
#   check_run WHERE FLAGS...      fails where the train program would refuse its flags;
#                   WHERE is gs, for hosts that share no disk, or any

dry_run=false

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; }

fail() {
  echo "error: $1; see --help" >&2
  exit 2
}

do_() {
  if "$dry_run"; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

check_name() {
  local most="${3:-63}"
  [[ "$2" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] && ((${#2} <= most)) && return
  fail "$1=$2: a name has lower-case letters, digits and hyphens, begins with a letter, and has at most $most characters"
}

check_run() { # WHERE FLAGS...
  local where="$1" flag workdir='' before='' root python said code=0
  shift
  for flag in "$@"; do
    [[ ! "$before" =~ ^--?workdir$ ]] || workdir="$flag"
    [[ ! "$flag" =~ ^--?workdir=(.*)$ ]] || workdir="${BASH_REMATCH[1]}"
    before="$flag"
  done
  [[ -n "$workdir" ]] || fail "--workdir is missing among the train program's flags"
  [[ "$where" != gs || "$workdir" == gs://?* ]] ||
    fail "--workdir=$workdir: the hosts share no disk, so it has to be gs://BUCKET/RUN"
  # The program itself, where it is installed, knows all its flags.
  root="$(dirname "${BASH_SOURCE[0]}")/.."
  python="${AGENTFLOW_VENV:-$root/.venv}/bin/python"
  [[ -x "$python" ]] || return 0
  said="$(cd "$root" && "$python" -m agentflow_jax.train "$@" --print_config \
    2>&1 >/dev/null)" || code=$?
  if ((code)); then
    echo "$said" >&2
    exit "$code"
  fi
}
