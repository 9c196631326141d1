#!/usr/bin/env bash
# Runs a training command again where that goes on with the run.
#
#   bash launch/retry.sh [--times=N] [--wait=SECONDS] -- COMMAND...
#
# Exit codes of the train program that are final: 0 done, 2 a mistake in flags or
# files, 3 the run stopped itself. After any other (70 a step hung, 75 told to
# stop, killed, another process gone) the same command goes on from what is
# committed: N times more (default 20), SECONDS apart (default 30). SIGTERM and
# SIGINT go to the command, and end this program with its exit code.
set -uo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

times=20 wait=30
while (($#)); do
  case "$1" in
    --help | -h)
      usage
      exit 0
      ;;
    --times=*) times="${1#*=}" ;;
    --wait=*) wait="${1#*=}" ;;
    --)
      shift
      break
      ;;
    *)
      fail "unknown argument $1: the command comes after --"
      ;;
  esac
  shift
done
(($#)) || fail "nothing to run: the command comes after --"

child=0 told=false heard=0
pass_on() {
  told=true heard=$((heard + 1))
  if ((child)); then kill -TERM "$child" 2>/dev/null; fi
}
trap pass_on TERM INT

for ((attempt = 0; ; attempt++)); do
  "$@" &
  child=$!
  while :; do
    before=$heard
    wait "$child"
    code=$?
    # Otherwise a signal ended the wait, and the child has a code of its own.
    ((heard == before)) && break
  done
  if "$told" || ((code == 0 || code == 2 || code == 3)); then exit "$code"; fi
  if ((attempt >= times)); then
    echo "ended with $code after $times attempts more; giving up" >&2
    exit "$code"
  fi
  echo "ended with $code; again in $wait s ($((attempt + 1)) of $times)" >&2
  sleep "$wait" &
  child=$!
  wait "$child"
  if "$told"; then exit "$code"; fi
done
