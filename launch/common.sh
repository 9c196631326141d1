# Sourced by the other launchers: what they say and how they run a command.
#
#   usage           prints the header of the launcher
#   fail MESSAGE    a mistake in the arguments: one line, exit code 2
#   do_ COMMAND...  runs it, or prints it where dry_run is true

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
