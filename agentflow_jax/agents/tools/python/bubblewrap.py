"""A sandbox of full CPython in namespaces of its own, by bubblewrap.

A program sees an interpreter, its standard library, NumPy, SymPy and mpmath,
read-only, and a small empty /tmp. It has no network, no other file, no /proc,
no device, no environment variable, no capability, no second process or thread;
its processor time, memory, files, output and wall time are bounded. Every
program gets a sandbox of its own, which is gone when it ends.

bwrap builds the namespaces and the file tree, `seccomp` decides which system
calls are left, `sandbox_bootstrap` sets the resource limits from inside. /tmp is
mounted before bwrap starts, in a namespace of its own, because bwrap cannot bound
how many files and directories a file system in memory may hold.
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
from collections.abc import Iterator, Sequence

from absl import logging

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import sandbox, seccomp

REMEDY = (
  'install bubblewrap (apt-get install bubblewrap) and allow user namespaces '
  '(in a container: --security-opt seccomp=unconfined; on Ubuntu 24.04: '
  'sysctl kernel.apparmor_restrict_unprivileged_userns=0)'
)

_LIBRARIES = ('numpy', 'sympy', 'mpmath')
# The package that zoneinfo reads, because the system's time zones are not visible.
_TIME_ZONES = 'tzdata'
# Extension modules that want X11, terminals or databases; without them fewer
# files of the host are visible and fewer mounts are made at every call.
_LEFT_OUT = frozenset({
    '_tkinter', 'readline', '_curses', '_curses_panel', '_dbm', '_gdbm', 'nis',
    '_crypt', '_ssl', '_testcapi', '_testinternalcapi',
})  # fmt: skip
_READY = b'\0sandbox ready\0\n'
_HOME = '/py'
_SHARED = '/lib'
# Mount point of the scratch file system until bwrap binds it to /tmp: a directory
# that every Linux has, and that holds no file which the sandbox needs.
_SCRATCH = '/sys'
_PROBE_SECONDS = 60.0
# What must work, and what must not: a sandbox that does not hold is refused.
_PROBE = """
import math, os, socket
for attempt in (
    lambda: open('/etc/passwd'),
    lambda: open('/proc/self/status'),
    lambda: open('/lib/written', 'w'),
    lambda: os.fork(),
    lambda: socket.socket(),
):
  try:
    attempt()
  except OSError:
    continue
  raise SystemExit('the sandbox does not hold')
print(math.factorial(5), sorted(os.environ))
"""


class Bubblewrap:
  """Runs each program in a fresh sandbox; see `sandbox.Backend`.

  Args:
    limits: bounds of one program.

  Raises:
    base.ToolUnavailable: this machine cannot make the sandbox, or it does not
      hold; says why and names the remedy.
  """

  name = 'bubblewrap'

  def __init__(self, limits: sandbox.Limits):
    self._limits = limits
    found = shutil.which('bwrap')
    if found is None:
      raise base.ToolUnavailable(f'no bwrap program; {REMEDY}')
    if not seccomp.supported():
      raise base.ToolUnavailable(
        f'no system call filter for {os.uname().machine}; use monty'
      )
    self._filter = seccomp.build()
    mounting = _mounting(limits)
    self._command = _command(found, limits, mounting)
    self._probe()
    scratch = f'{limits.scratch_bytes // 2**20} MB under /tmp'
    have = ', '.join(
      directory.name
      for directory in _library_directories()
      if directory.name != _TIME_ZONES
    )
    self.card_limits = (
      f'Python {sys.version_info.major}.{sys.version_info.minor} with its '
      f'standard library{" and " if have else ""}{have}; no network, no '
      f'files{f" but {scratch}" if mounting else ""}, no input, no threads or '
      'subprocesses'
    )

  async def run(
    self, program: str, limits: sandbox.Limits | None = None, keep: Sequence[int] = ()
  ) -> sandbox.Outcome:
    """Runs a program.

    Args:
      program: text of the program.
      limits: bounds of its time; None for those of the sandbox.
      keep: file descriptors that the program inherits.

    Raises:
      base.ToolUnreachable: the sandbox failed.
    """
    limits = limits or self._limits
    try:
      with self._descriptors(program) as (source, rules):
        finished = await sandbox.run_process(
          self._arguments(rules, limits),
          limits,
          environment={},
          stdin=source,
          pass_fds=(rules, *keep),
        )
    except OSError as error:  # such as no descriptor left
      raise base.ToolUnreachable(f'cannot make a sandbox: {error}') from error
    return _outcome(finished, limits)

  def _arguments(self, rules: int, limits: sandbox.Limits) -> list[str]:
    """Returns the command of a sandbox with the filter of a descriptor."""
    head, interpreter, rest = self._command
    seconds = str(math.ceil(limits.cpu_seconds))
    return [*head, '--seccomp', str(rules), *interpreter, seconds, *rest]

  def _probe(self) -> None:
    with self._descriptors(_PROBE) as (source, rules):
      try:
        done = subprocess.run(
          self._arguments(rules, self._limits),
          stdin=source,
          capture_output=True,
          env={},
          cwd='/',
          pass_fds=(rules,),
          timeout=_PROBE_SECONDS,
          check=False,
        )
      except (OSError, subprocess.TimeoutExpired) as error:
        raise base.ToolUnavailable(f'bwrap failed: {error}; {REMEDY}') from error
    if done.returncode or done.stdout != b'120 []\n':
      said = sandbox.decode(done.stderr + done.stdout).replace('\0', '').strip()
      raise base.ToolUnavailable(
        f'the bubblewrap sandbox does not work here ({said[-300:]}); {REMEDY}'
      )

  @contextlib.contextmanager
  def _descriptors(self, program: str) -> Iterator[tuple[int, int]]:
    """Files in memory that hold the program and the filter, for one child.

    A descriptor shares its position with every process that inherits it, so
    two sandboxes cannot read the same one.
    """
    with contextlib.ExitStack() as stack:
      descriptors = []
      for content in (program.encode(), self._filter):
        descriptor = os.memfd_create('sandbox', os.MFD_CLOEXEC)
        stack.callback(os.close, descriptor)
        os.write(descriptor, content)
        # Opened anew: at its beginning, and not for writing.
        descriptors.append(os.open(f'/proc/self/fd/{descriptor}', os.O_RDONLY))
        stack.callback(os.close, descriptors[-1])
      yield descriptors[0], descriptors[1]


def _outcome(finished: sandbox.Finished, limits: sandbox.Limits) -> sandbox.Outcome:
  before, ready, stderr = finished.stderr.partition(_READY)
  if not ready:
    # The program had not started, so this is the machine's doing, not its.
    raise base.ToolUnreachable(
      f'the sandbox did not start ({finished.stopped or "status"} '
      f'{finished.returncode}): {sandbox.decode(before)[-300:]}'
    )
  if finished.stopped:
    return sandbox.stopped_outcome(finished, limits)
  output = sandbox.decode(finished.stdout)
  if finished.returncode == 0:
    return sandbox.Outcome(output)
  last = sandbox.decode(stderr).strip().rpartition('\n')[2].strip()
  if finished.returncode != 1 or not last:
    last = sandbox.describe_exit(finished.returncode, limits)
  return sandbox.Outcome(output, error=last)


def _command(
  bwrap: str, limits: sandbox.Limits, mounting: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
  """Returns the command's parts around `--seccomp FD` and the processor time."""
  version = f'python{sys.version_info.major}.{sys.version_info.minor}'
  stdlib = pathlib.Path(sysconfig.get_path('stdlib'))
  extensions = _extension_directory(stdlib)
  # A virtual environment's interpreter is a link without a library beside it.
  own = sys._base_executable  # pyright: ignore[reportAttributeAccessIssue]  # typeshed lacks it.
  interpreter = pathlib.Path(os.path.realpath(own))
  home = f'{_HOME}/lib/{version}'
  dynamic = f'{_HOME}/{sys.platlibdir}/{version}/lib-dynload'
  head = [*mounting, bwrap, '--unshare-all', '--unshare-user', '--uid', '65534']
  head += ['--gid', '65534', '--hostname', 'sandbox', '--die-with-parent']
  head += ['--cap-drop', 'ALL', '--clearenv']
  head += ['--ro-bind', str(interpreter), f'{_HOME}/bin/python']
  head += ['--ro-bind', str(stdlib), home]
  if extensions != stdlib / 'lib-dynload':
    head += ['--ro-bind', str(extensions), dynamic]
  for packages in ('site-packages', 'dist-packages'):
    if (stdlib / packages).is_dir():
      # Whatever else is installed there is not this program's to read.
      hidden = f'{home}/{packages}'
      head += ['--tmpfs', hidden, '--remount-ro', hidden]
  directories = _library_directories()
  for directory in directories:
    for part in (directory, directory.with_name(f'{directory.name}.libs')):
      if part.is_dir():
        head += ['--ro-bind', str(part), f'{_HOME}/site/{part.name}']
  for name, path in _shared_objects(interpreter, extensions, directories):
    head += ['--ro-bind', path, name]
  if mounting:
    head += ['--bind', _SCRATCH, '/tmp']
  # bwrap's own root is a file system in memory: it must not be writable.
  head += ['--remount-ro', '/', '--chdir', '/tmp' if mounting else '/']
  # One thread: the filter allows no more. A fixed hash seed: the same program
  # prints its sets in the same order. bootstrap hides these from the program.
  for name in ('OPENBLAS', 'OMP', 'MKL'):
    head += ['--setenv', f'{name}_NUM_THREADS', '1']
  head += ['--setenv', 'LD_LIBRARY_PATH', _SHARED]
  head += ['--setenv', 'PYTHONHASHSEED', '0']
  bootstrap = pathlib.Path(__file__).with_name('sandbox_bootstrap.py')
  interpreter = ['--', f'{_HOME}/bin/python', '-sSBP', '-X', 'utf8', '-c']
  interpreter += [bootstrap.read_text(encoding='utf-8')]
  rest = [str(limits.memory_bytes), str(limits.scratch_bytes)]
  rest += [home, dynamic, f'{_HOME}/site']
  return head, interpreter, rest


def _mounting(limits: sandbox.Limits) -> list[str]:
  """Returns a command that mounts the scratch file system and runs its arguments.

  The file system bounds bytes, and files, directories and links by number: the
  kernel's memory for these counts to no process. Where this machine cannot mount
  it, the list is empty, and programs get no writable directory.
  """
  unshare, mount = shutil.which('unshare'), shutil.which('mount')
  if unshare is None or mount is None:
    logging.info('python tool: no unshare and mount programs, so no /tmp')
    return []
  options = f'size={limits.scratch_bytes},nr_inodes={limits.scratch_entries},mode=1777'
  script = f'{shlex.quote(mount)} -t tmpfs -o {options} scratch {_SCRATCH}'
  command = [unshare, '--user', '--map-root-user', '--mount', '--']
  command += ['/bin/sh', '-c', f'{script} && exec "$@"', 'sh']
  try:
    done = subprocess.run(
      [*command, '/bin/sh', '-c', ':'],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      env={},
      cwd='/',
      check=False,
      timeout=_PROBE_SECONDS,
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    logging.info('python tool: %s, so no /tmp', error)
    return []
  if done.returncode:
    logging.info(
      'python tool: no bounded /tmp: %s', sandbox.decode(done.stderr).strip()
    )
    return []
  return command


def _extension_directory(stdlib: pathlib.Path) -> pathlib.Path:
  for entry in sys.path:
    if pathlib.Path(entry).name == 'lib-dynload':
      return pathlib.Path(entry)
  return stdlib / 'lib-dynload'


@functools.cache
def _library_directories() -> tuple[pathlib.Path, ...]:
  """Where the libraries are, found without importing them."""
  directories = []
  for name in (*_LIBRARIES, _TIME_ZONES):
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
      logging.warning('python tool: %s is not installed here', name)
      continue
    if spec.cached and not os.path.exists(spec.cached):
      logging.warning(
        'python tool: %s is not compiled, so importing it will be slow; '
        'run: python -m compileall -q %s',
        name,
        os.path.dirname(spec.origin),
      )
    directories.append(pathlib.Path(spec.origin).parent)
  return tuple(directories)


def _shared_objects(
  interpreter: pathlib.Path,
  extensions: pathlib.Path,
  directories: tuple[pathlib.Path, ...],
) -> list[tuple[str, str]]:
  """Where each shared object that is needed goes, and where it is here.

  Raises:
    base.ToolUnavailable: ldd, which knows, is missing.
  """
  modules = list(extensions.glob('*.so'))
  modules = [m for m in modules if m.name.split('.')[0] not in _LEFT_OUT]
  for directory in directories:
    modules += directory.rglob('*.so')
  try:
    done = subprocess.run(
      ['ldd', str(interpreter), *sorted(map(str, modules))],
      capture_output=True,
      check=False,
      timeout=_PROBE_SECONDS,
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    raise base.ToolUnavailable(f'cannot run ldd: {error}') from error
  found = {}
  for line in sandbox.decode(done.stdout).splitlines():
    if named := re.match(r'\s+(\S+) => (/.+) \(0x', line):
      # Libraries inside a package are found from there.
      if not any(f'/{d.name}.libs/' in named[2] for d in directories):
        found[f'{_SHARED}/{named[1]}'] = os.path.realpath(named[2])
    elif loader := re.match(r'\s+(/\S+) \(0x', line):
      # The loader is named in the interpreter by its whole path.
      found[loader[1]] = os.path.realpath(loader[1])
  return sorted(found.items())
