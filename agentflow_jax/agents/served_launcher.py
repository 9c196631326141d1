"""Limits this process, and becomes the command of an agent that is not ours.

  python -I -S served_launcher.py CPU_SECONDS MEMORY_BYTES PROGRAM [ARGUMENT ...]

Started by served_command, in a process group of its own. On Linux the kernel kills
the command when the process that started it ends, however that ends.
"""

import os
import resource
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main(arguments: list[str]) -> None:
  """Becomes the command; where there is no such program, says so and exits with 127."""
  cpu, memory, *command = arguments
  _limit(resource.RLIMIT_CPU, int(cpu))
  _limit(resource.RLIMIT_AS, int(memory))
  _limit(resource.RLIMIT_CORE, 0)
  if sys.platform == 'linux':
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
  try:
    os.execvp(command[0], command)
  except OSError as e:
    print(f'{command[0]}: {e.strerror}', file=sys.stderr)
    sys.exit(127)


def _limit(which: int, most: int) -> None:
  _, hard = resource.getrlimit(which)
  if hard != resource.RLIM_INFINITY:
    most = min(most, hard)
  resource.setrlimit(which, (most, most))


if __name__ == '__main__':
  main(sys.argv[1:])
