"""A sandbox by interpretation: pydantic-monty, an interpreter written in Rust.

Monty implements a part of Python and gives it no operating system: no files,
sockets, processes or environment exist for a program, because nothing mounts
or implements them. The interpreter itself is not trusted either. Each program
has a `monty` process of its own, with an empty environment, the root directory
as its own, no input, and limits on processor time, memory, files and wall time,
so that a flaw in it meets a bounded process; `bubblewrap` is the stronger one.
"""

import contextlib
import functools
import importlib.util
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import sandbox

REMEDY = 'install it with: pip install pydantic-monty'

_PROBE_SECONDS = 60.0
# What the process itself maps before a program runs: its image, its stacks.
_OWN_BYTES = 512 * 2**20
# Exit statuses of the shell that sets the limits and becomes monty: a limit was
# refused, or monty could not be started. Monty itself ends with 0 or 1.
_LAUNCHER_FAILED = frozenset({2, 125, 126, 127})
# A program that must work, and one that must not.
_WORKS = 'print(6 * 7)'
_ESCAPES = "print(open('/etc/passwd').read())"


class Monty:
  """Runs each program in a fresh interpreter; see `sandbox.Backend`.

  Args:
    limits: bounds of one program.

  Raises:
    base.ToolUnavailable: monty is not installed or does not work here.
  """

  name = 'monty'
  card_limits = (
    'a part of Python: functions, plain classes, comprehensions, f-strings, '
    'exceptions, and the modules math, re, json, datetime, random, '
    'itertools, functools, collections, decimal, bisect and copy; no numpy '
    'or sympy, no generators, no OrderedDict (a dict keeps its order), no '
    'sys.stdout.write (use print), no input, no files, no network, no exit()'
  )

  def __init__(self, limits: sandbox.Limits):
    self._limits = limits
    self._command = _command(_find_binary(), limits)
    done = self._probe(_WORKS)
    if done.returncode or done.stdout != b'42\n':
      said = sandbox.decode(done.stderr + done.stdout).strip()[-300:]
      raise base.ToolUnavailable(f'monty does not work here ({said}); {REMEDY}')
    done = self._probe(_ESCAPES)
    if done.returncode != 1 or done.stdout:
      raise base.ToolUnavailable('the monty sandbox does not hold')

  def _probe(self, program: str) -> subprocess.CompletedProcess:
    try:
      with _lifeline() as alive:
        return subprocess.run(
          [*self._command, f'-c={program}'],
          stdin=alive,
          capture_output=True,
          env={},
          cwd='/',
          start_new_session=True,
          timeout=_PROBE_SECONDS,
          check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
      raise base.ToolUnavailable(f'monty failed: {error}; {REMEDY}') from error

  async def run(self, program: str) -> sandbox.Outcome:
    """Runs a program; raises `base.ToolUnreachable` if the sandbox failed."""
    try:
      with _lifeline() as alive:
        # One argument with its option, so that no program can be taken for one.
        finished = await sandbox.run_process(
          [*self._command, f'-c={program}'], self._limits, environment={}, stdin=alive
        )
    except OSError as error:  # such as no descriptor left
      raise base.ToolUnreachable(f'cannot run monty: {error}') from error
    return _outcome(finished, self._limits)


@contextlib.contextmanager
def _lifeline() -> Iterator[int]:
  """Yields the read end of a pipe whose write end closes with this process."""
  alive, ours = os.pipe()
  try:
    yield alive
  finally:
    os.close(alive)
    os.close(ours)


def _outcome(finished: sandbox.Finished, limits: sandbox.Limits) -> sandbox.Outcome:
  if finished.stopped:
    return sandbox.stopped_outcome(finished, limits)
  output = sandbox.decode(finished.stdout)
  if finished.returncode == 0:
    return sandbox.Outcome(output)
  stderr = sandbox.decode(finished.stderr)
  if finished.returncode in _LAUNCHER_FAILED:
    raise base.ToolUnreachable(f'monty did not start: {stderr[-300:]}')
  if finished.returncode != 1:
    return sandbox.Outcome(
      output, error=sandbox.describe_exit(finished.returncode, limits)
    )
  return sandbox.Outcome(output, error=_last_error(stderr))


def _last_error(stderr: str) -> str:
  """The exception that monty reports, with the program's line number."""
  lines = stderr.partition('error:')[2].rstrip().splitlines()
  # Frames are indented, the exception follows them on lines that are not.
  indented = [i for i, line in enumerate(lines) if line.startswith('  ')]
  error = ' '.join(' '.join(lines[max(indented, default=-1) + 1 :]).split())
  error = error or 'the program failed'
  places = re.findall(r'File "<string>", line (\d+)', stderr)
  return f'{error} (line {places[-1]})' if places else error


def _command(binary: str, limits: sandbox.Limits) -> list[str]:
  # A second more than monty's own limit, which can say what happened.
  cpu = math.ceil(limits.cpu_seconds) + 1
  shell = [f'ulimit -t {cpu}', bounded_shell(limits)]
  # Standard input is a pipe whose write end this process holds. When the call or this
  # process ends, the pipe closes, and the watcher kills its process group, to which
  # monty belongs. While the watcher lives, the number of the group is not used again.
  # There is no watcher if the kernel kills monty with its parent: in a container
  # whose first process is this one, each watcher would leave a zombie.
  ends_with_parent = _ending_with_parent()
  shell.append('exec 3<&0 </dev/null')
  watcher = '(read -r _ <&3; kill -s KILL -- -$$) >/dev/null 2>&1 & exec 3<&-'
  shell.append('exec 3<&-' if ends_with_parent else f'{{ {watcher}; }}')
  script = ' && '.join(shell) + ' && unset PWD OLDPWD && exec "$0" "$@"'
  return [
      *ends_with_parent, '/bin/sh', '-c', f'{script} || exit 125', binary,
      f'--max-feed-duration={limits.cpu_seconds}',
      f'--max-memory={limits.memory_bytes}',
      f'--max-total-sleep={limits.wall_seconds}', '--max-sleep=inf',
  ]  # fmt: skip


def bounded_shell(limits: sandbox.Limits) -> str:
  """Returns a command of the shell that bounds what follows it, but not its time."""
  bounds = ['ulimit -c 0', 'ulimit -f 0', 'ulimit -n 32']
  if sys.platform == 'linux':  # elsewhere the shell cannot bound memory
    bounds.append(f'ulimit -v {(limits.memory_bytes + _OWN_BYTES) // 1024}')
  return ' && '.join(bounds)


def quoted_binary() -> str:
  """Returns the path of the monty program, as a word of the shell.

  Raises:
    base.ToolUnavailable: there is none.
  """
  return shlex.quote(_find_binary())


@functools.cache
def _ending_with_parent() -> tuple[str, ...]:
  """Returns the prefix of a command that the kernel kills with our thread.

  The prefix is empty where setpriv has no such option: on other systems than Linux,
  and before util-linux 2.33.
  """
  found = shutil.which('setpriv')
  if found is None:
    return ()
  command = (found, '--pdeathsig', 'KILL', '--')
  try:
    done = subprocess.run(
      [*command, '/bin/sh', '-c', ':'],
      capture_output=True,
      check=False,
      timeout=_PROBE_SECONDS,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ()
  return () if done.returncode else command


def _find_binary() -> str:
  """Path of the monty program that belongs to the installed package."""
  if importlib.util.find_spec('pydantic_monty') is None:
    raise base.ToolUnavailable(f'pydantic-monty is not installed; {REMEDY}')
  places = [sysconfig.get_path('scripts')]
  places.append(sysconfig.get_path('scripts', f'{os.name}_user'))
  for place in places:
    binary = pathlib.Path(place) / 'monty'
    if binary.is_file():
      return str(binary)
  found = shutil.which('monty')
  if found is None:
    raise base.ToolUnavailable(f'the monty program is missing; {REMEDY}')
  return os.path.realpath(found)
