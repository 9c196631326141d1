"""Attempts to get out of each sandbox, or to take more than was given.

An attempt is a program that prints ESCAPED if it got what it was after. The
fixture `host` puts real bait outside: a secret file and variable, listening
sockets, a process to kill and this process's memory. Attempts marked `bare`
also run without a sandbox, where they must succeed: the bait is real. No
attempt does harm where it succeeds: a sandbox with a hole must not cost anybody
their interpreter, so files are opened for writing, never written.
"""

import asyncio
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from agentflow_jax.agents.environments.programs import monty_sessions
from agentflow_jax.agents.environments.programs import replayed_sessions, sessions
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import python_tool, sandbox

_LIMITS = sandbox.Limits(
  wall_seconds=5.0, cpu_seconds=1.0, memory_bytes=256 * 2**20, scratch_bytes=4 * 2**20
)
_SECRET = 'swordfish-in-this-process'
# Without rights over it a process may not read its parent's memory anywhere.
_ROOT = os.geteuid() == 0

# Calls a system call by its number, past every wrapper of Python's.
_SYSCALL = """
import ctypes, platform
arm = platform.machine() == 'aarch64'
libc = ctypes.CDLL(None, use_errno=True)
def syscall(x86, aarch64, *args):
  args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
  return libc.syscall(ctypes.c_long(aarch64 if arm else x86), *args)
def won(result):
  print('ESCAPED' if result >= 0 else ctypes.get_errno())
"""

# name -> (program, whether it succeeds where there is no sandbox)
_ATTEMPTS = {
    # Files.
    'read a file': ('print(open({secret!r}).read())\nprint("ESCAPED")', True),
    'read passwd': ('open("/etc/passwd").read()\nprint("ESCAPED")', True),
    'read by pathlib': (
        'import pathlib\npathlib.Path({secret!r}).read_text()\n'
        'print("ESCAPED")',
        True,
    ),
    'climb up': (
        'open("../" * 20 + "etc/passwd").read()\nprint("ESCAPED")', True),
    'see the root': (
        'import os\n'
        'if set(os.listdir("/")) - {{"lib", "lib64", "py", "tmp"}}:\n'
        '  print("ESCAPED")', True),
    'see the home': (
        'import os\nprint(os.listdir({home!r}))\nprint("ESCAPED")', True),
    'read site-packages': (
        'import os, sys\nd = os.path.dirname(os.__file__)\n'
        'if os.listdir(d + "/site-packages"):\n  print("ESCAPED")', False),
    'import a host package': ('import pytest\nprint("ESCAPED")', True),
    'write the standard library': (
        'import os\nos.open(os.path.dirname(os.__file__), '
        'os.O_TMPFILE | os.O_RDWR)\nprint("ESCAPED")', False),
    'change the standard library': (
        'import os\nopen(os.__file__, "r+")\nprint("ESCAPED")', False),
    'write a library': (
        'import numpy\nopen(numpy.__file__, "a")\nprint("ESCAPED")', False),
    'replace the interpreter': (
        'import sys\nopen(sys.executable, "r+b")\nprint("ESCAPED")', False),
    'touch the standard library': (
        'import os\ns = os.stat(os.__file__)\n'
        'os.utime(os.__file__, ns=(s.st_atime_ns, s.st_mtime_ns))\n'
        'print("ESCAPED")', False),
    'change its mode': (
        'import os\nos.chmod(os.__file__, os.stat(os.__file__).st_mode)\n'
        'print("ESCAPED")', False),
    'move it': (
        'import os\nos.rename(os.__file__, os.__file__)\nprint("ESCAPED")',
        False),
    'write the root': (
        'import os\nos.open("/", os.O_TMPFILE | os.O_RDWR)\nprint("ESCAPED")',
        False),
    'write where packages were': (
        'import os\nos.open(os.path.dirname(os.__file__) + "/site-packages", '
        'os.O_TMPFILE | os.O_RDWR)\nprint("ESCAPED")', False),
    'link to a file': (
        'import os\nos.symlink({secret!r}, "/tmp/l")\nopen("/tmp/l").read()\n'
        'print("ESCAPED")', False),
    'link through proc': (
        'import os\nos.symlink("/proc/1/root" + {secret!r}, "/tmp/l")\n'
        'open("/tmp/l").read()\nprint("ESCAPED")', False),
    'hard link': (
        'import os\nos.link(os.__file__, "/tmp/l")\nprint("ESCAPED")', False),
    'make a device': (
        'import os, stat\n'
        'os.mknod("/tmp/d", 0o600 | stat.S_IFBLK, os.makedev(8, 0))\n'
        'print("ESCAPED")', False),
    'open a device': (
        'import os\nfor d in ("/dev/mem", "/dev/sda", "/dev/tty", "/dev/kmsg",'
        ' "/dev/null"):\n  if os.path.exists(d):\n    print("ESCAPED")', True),
    'change the root': (
        'import os\nos.chroot("/tmp")\nprint("ESCAPED")', False),
    'set-user-id file': (
        'import os\nopen("/tmp/s", "w")\nos.chmod("/tmp/s", 0o4777)\n'
        'os.execv("/tmp/s", ["s"])\nprint("ESCAPED")', False),
    # Environment and inherited descriptors.
    'environment': (
        'import os\nif "SECRET" in os.environ or len(os.environ) > 0:\n'
        '  print("ESCAPED")', True),
    'environment by getenv': (
        'import os\nif os.getenv("SECRET") or os.getenv("PATH"):\n'
        '  print("ESCAPED")', True),
    'environment in memory': (
        'import ctypes\nlibc = ctypes.CDLL(None)\n'
        'libc.getenv.restype = ctypes.c_char_p\n'
        'if libc.getenv(b"SECRET") or libc.getenv(b"PATH"):\n'
        '  print("ESCAPED")', True),
    'inherited descriptors': (
        'import os\nfor fd in range(3, 256):\n  try:\n    os.fstat(fd)\n'
        '    print("ESCAPED")\n  except OSError:\n    pass', False),
    'name and host': (
        'import socket, os\nif os.uname().nodename == {node!r}:\n'
        '  print("ESCAPED")', True),
    # /proc and other processes' memory.
    'proc environ': (
        'open("/proc/{pid}/environ").read()\nprint("ESCAPED")', True),
    'proc self': ('open("/proc/self/status").read()\nprint("ESCAPED")', True),
    'proc of init': ('open("/proc/1/cmdline").read()\nprint("ESCAPED")', True),
    "the trainer's memory": (
        'f = open("/proc/{pid}/mem", "rb")\nf.seek({address})\n'
        'if f.read({length}) == {secret_bytes!r}:\n  print("ESCAPED")', _ROOT),
    'memory by process_vm_readv': (
        _SYSCALL + 'b = ctypes.create_string_buffer({length})\n'
        'class V(ctypes.Structure):\n  _fields_ = [("p", ctypes.c_void_p), '
        '("n", ctypes.c_size_t)]\n'
        'l = V(ctypes.addressof(b), {length}); r = V({address}, {length})\n'
        'syscall(310, 270, {pid}, ctypes.byref(l), 1, ctypes.byref(r), 1, 0)\n'
        'if b.raw == {secret_bytes!r}:\n  print("ESCAPED")', _ROOT),
    'ptrace the parent': (
        _SYSCALL + 'import os\nwon(syscall(101, 117, 16, os.getppid(), 0, 0))',
        False),
    'mount proc': (
        _SYSCALL + 'import os\nos.mkdir("/tmp/p")\n'
        'won(syscall(165, 40, b"proc", b"/tmp/p", b"proc", 0, None))', False),
    # Network.
    'connect': (
        'import socket\nsocket.create_connection(("127.0.0.1", {port}), 2)\n'
        'print("ESCAPED")', True),
    'ask a server': (
        'import http.client\n'
        'c = http.client.HTTPConnection("127.0.0.1", {port}, timeout=2)\n'
        'c.request("GET", "/")\nprint("ESCAPED")', True),
    'send a datagram': (
        'import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n'
        's.sendto(b"x", ("127.0.0.1", 9))\nprint("ESCAPED")', True),
    'local socket': (
        'import socket\ns = socket.socket(socket.AF_UNIX)\n'
        's.connect({unix!r})\nprint("ESCAPED")', True),
    'abstract socket': (
        'import socket\ns = socket.socket(socket.AF_UNIX)\n'
        's.connect("\\0" + {abstract!r})\nprint("ESCAPED")', True),
    'virtual machine socket': (
        'import socket\nsocket.socket(40, socket.SOCK_STREAM)\n'
        'print("ESCAPED")', False),
    'netlink socket': (
        'import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n'
        'print("ESCAPED")', True),
    'crypto socket': (
        'import socket\nsocket.socket(38, socket.SOCK_SEQPACKET)\n'
        'print("ESCAPED")', False),
    'socket pair of another family': (
        _SYSCALL + 'p = (ctypes.c_int * 2)()\n'
        'won(syscall(53, 199, 30, 1, 0, p))', False),
    'network by io_uring': (
        _SYSCALL + 'b = ctypes.create_string_buffer(256)\n'
        'won(syscall(425, 425, 8, b))', False),
    # Processes, threads, signals.
    'fork': ('import os\nos.fork()\nprint("ESCAPED")', True),
    'subprocess': (
        'import subprocess, sys\n'
        'subprocess.run([sys.executable, "-c", "1"], check=True)\n'
        'print("ESCAPED")', True),
    'shell': (
        'import os\nif os.system("echo") == 0:\n  print("ESCAPED")', True),
    'posix_spawn': (
        'import os, sys\n'
        'os.posix_spawn(sys.executable, ["p", "-c", "1"], {{}})\n'
        'print("ESCAPED")', True),
    'thread': (
        'import threading\nthreading.Thread(target=print).start()\n'
        'print("ESCAPED")', True),
    'fork bomb': (
        'import os, time\nfor _ in range(40):\n  if os.fork() == 0:\n'
        '    time.sleep(3)\n    os._exit(0)\n  print("ESCAPED", flush=True)',
        False),
    'clone by number': (
        _SYSCALL + 'won(syscall(56, 220, 17, 0, 0, 0, 0))', False),
    'vfork by number': (_SYSCALL + 'won(syscall(58, 999, 0))', False),
    'clone3 by number': (
        _SYSCALL + 'b = (ctypes.c_ulong * 8)()\nb[4] = 17\n'
        'won(syscall(435, 435, b, 64))', False),
    'clone by a 32-bit number': (
        _SYSCALL + 'won(syscall(0x40000000 + 56, 999, 17, 0, 0, 0, 0))', False),
    'kill a process': (
        'import os\nos.kill({victim}, 9)\nprint("ESCAPED")', False),
    'signal the parent': (
        'import os\nos.kill({pid}, 0)\nprint("ESCAPED")', True),
    'kill the namespace': (
        'import os, time\nif os.getppid() == 1:\n  for s in (15, 9, 19):\n'
        '    os.kill(1, s)\n  time.sleep(0.1)\nelse:\n  print("ESCAPED")',
        True),
    'new session': (
        'import os\nos.setsid()\nprint("ESCAPED")', False),
    'run a shell instead': (
        'import os\nos.execv("/bin/sh", ["sh", "-c", "echo ESCAPED"])', True),
    'run python anew without limits': (
        'import sys, os\nos.execv(sys.executable, [sys.executable, "-SBc", '
        '"import resource as r\\n'
        'if not 0 <= r.getrlimit(r.RLIMIT_AS)[1] <= 2**28: '
        'print(\\"ESCAPED\\")"])', True),
    # Rights.
    'become root': ('import os\nos.setuid(0)\nprint("ESCAPED")', False),
    'be root': ('import os\nif os.getuid() == 0:\n  print("ESCAPED")', False),
    'raise the limits': (
        'import resource as r\n'
        'r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))\n'
        'print("ESCAPED")', False),
    'raise the hard CPU limit': (
        'import resource as r\nr.setrlimit(r.RLIMIT_CPU, (99, 99))\n'
        'print("ESCAPED")', False),
    'new user namespace': (
        _SYSCALL + 'won(syscall(272, 97, 0x10000000))', False),
    'outlive the parent': (
        _SYSCALL + 'won(syscall(157, 167, 1, 0, 0, 0, 0))', False),
    'keys of the session': (
        _SYSCALL + 'won(syscall(250, 219, 0, -3, 1, 0, 0))', False),
    'add a key': (
        _SYSCALL + 'won(syscall(248, 217, b"user", b"n", b"v", 1, -3))', False),
    'bpf': (
        _SYSCALL + 'b = ctypes.create_string_buffer(128)\n'
        'b[0] = 2\nb[4] = 4; b[8] = 4; b[12] = 1\nwon(syscall(321, 280, 0, b, '
        '128))', False),
    'performance counters': (
        _SYSCALL + 'b = ctypes.create_string_buffer(128)\n'
        'b[0] = 1; b[4] = 112\nwon(syscall(298, 241, b, 0, -1, -1, 0))', False),
    'user faults': (_SYSCALL + 'won(syscall(323, 282, 1))', False),
    'type into the terminal': (
        _SYSCALL + 'won(syscall(16, 29, 0, 0x5412, b"x"))', False),
    # Memory that a limit on one address space would not count.
    'memory': ('x = bytearray(2**30)\nprint("ESCAPED")', False),
    'memory in pieces': (
        'x = []\nfor i in range(1024):\n  x.append("%d" % i * 2**19)\n'
        'print("ESCAPED")', False),
    'memory by mapping': (
        'import mmap\nm = [mmap.mmap(-1, 2**26) for _ in range(16)]\n'
        'print("ESCAPED")', True),
    'memory in a list': ('x = [0] * 10**8\nprint("ESCAPED")', False),
    'memory by an integer': (
        'x = 1 << 2**33\nprint("ESCAPED")', False),
    'memory file': (
        'import os\nos.memfd_create("m")\nprint("ESCAPED")', True),
    'shared memory': (
        _SYSCALL + 'won(syscall(29, 194, 0, 2**30, 0o1600))', False),
    'message queue': (_SYSCALL + 'won(syscall(68, 186, 0, 0o1600))', False),
    'large pipe': (
        'import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(w, 1031, 2**20)\n'
        'print("ESCAPED")', True),
    'many pipes': (
        'import os\np = [os.pipe() for _ in range(100)]\n'
        'print("ESCAPED")', True),
    'large file': (
        'f = open("/tmp/big", "wb")\nfor _ in range(8):\n'
        '  f.write(bytes(2**20))\nf.flush()\nprint("ESCAPED")', False),
    'many files': (
        'for i in range(8):\n  with open(f"/tmp/{{i}}", "wb") as f:\n'
        '    f.write(bytes(2**20))\nprint("ESCAPED")', False),
    'sparse file': (
        'f = open("/tmp/s", "wb")\nf.truncate(2**30)\nprint("ESCAPED")', False),
    'lock a host file': (
        'import fcntl, os\nfcntl.flock(open(os.__file__), fcntl.LOCK_EX)\n'
        'print("ESCAPED")', True),
    # Interpreters: ways from an object to what it should not reach.
    'climb the class tree': (
        'for c in ().__class__.__base__.__subclasses__():\n'
        '  if c.__name__ == "_wrap_close":\n'
        '    if c.__init__.__globals__["system"]("echo") == 0:\n'
        '      print("ESCAPED")', False),
    'import by name': (
        '__import__("os").listdir({home!r})\nprint("ESCAPED")', True),
    'evaluate an import': (
        'eval("__import__(\'os\')").listdir({home!r})\nprint("ESCAPED")', True),
    'options for the interpreter': ('--mount=/::/h', False),
    'short option': ('-m/::/h', False),
}  # fmt: skip


@pytest.fixture(scope='module')
def host(tmp_path_factory):
  """Bait on the host, as the values that attempts are formatted with."""
  directory = tmp_path_factory.mktemp('bait')
  secret = directory / 'secret'
  secret.write_text(_SECRET)
  listener = socket.create_server(('127.0.0.1', 0), backlog=64)
  unix = socket.socket(socket.AF_UNIX)
  unix.bind(str(directory / 'socket'))
  unix.listen(64)
  abstract = socket.socket(socket.AF_UNIX)
  name = f'bait-{os.getpid()}'
  abstract.bind('\0' + name)
  abstract.listen(64)
  victim = subprocess.Popen(['sleep', '600'])
  import ctypes  # pylint: disable=g-import-not-at-top

  memory = ctypes.create_string_buffer(_SECRET.encode())
  os.environ['SECRET'] = _SECRET
  yield {
    'secret': str(secret),
    'secret_bytes': _SECRET.encode(),
    'length': len(_SECRET),
    'address': ctypes.addressof(memory),
    'pid': os.getpid(),
    'victim': victim.pid,
    'home': str(pathlib.Path.home()),
    'port': listener.getsockname()[1],
    'unix': str(directory / 'socket'),
    'abstract': name,
    'node': os.uname().nodename,
  }
  del os.environ['SECRET']
  assert victim.poll() is None, 'a program killed a process of the host'
  assert secret.read_text() == _SECRET
  victim.kill()
  victim.wait()
  for bait in (listener, unix, abstract):
    bait.close()


@pytest.fixture(
  scope='module', params=['bubblewrap', 'monty', 'bubblewrap session', 'monty session']
)
def tool(request):
  try:
    if 'session' in request.param:
      return _session_tool(request.param)
    return python_tool.make(request.param, _LIMITS)
  except base.ToolUnavailable as error:
    pytest.skip(str(error))


def _session_tool(name):
  """A tool whose program is the second one of a session, beside a function."""
  limits = sessions.Limits(_LIMITS)
  made = {
    'bubblewrap session': replayed_sessions.ReplayedSessions,
    'monty session': monty_sessions.MontySessions,
  }[name](limits)
  start = sessions.Start(('find',), 'seed')

  async def find(function, positional, named):
    return f'{function} {positional} {named}'

  async def call(arguments):
    first = await made.run(b'', 'x = find("a")\nprint(x)', find, start)
    assert first.output == "find ['a'] {}\n" or first.output == "find ('a',) {}\n"
    second = await made.run(first.state, arguments['code'], find, start)
    said = sessions.observation(second, limits, ())
    await made.close()
    if second.error:
      raise base.BadArguments(said[0].lower() + said[1:])
    return said

  return base.Tool(base.Card(name, 'Runs programs.', ()), call)


def _run(tool: base.Tool, program: str) -> str:
  """What the model would read, be it a result or an error."""
  try:
    return asyncio.run(tool.call({'code': program}))
  except base.BadArguments as error:
    return str(error)


@pytest.mark.parametrize('name', _ATTEMPTS)
def test_attempt_fails(tool, host, name):
  if name == 'inherited descriptors' and tool.card.name == 'bubblewrap session':
    pytest.skip('a session has one: see replayed_sessions_test')
  program = _ATTEMPTS[name][0].format(**host)
  said = _run(tool, program)
  assert 'ESCAPED' not in said
  assert _SECRET not in said


@pytest.mark.parametrize(
  'name', [name for name, (_, bare) in _ATTEMPTS.items() if bare]
)
def test_attempt_succeeds_without_a_sandbox(host, name):
  """Without this an attempt with a mistake in it would count as a defence."""
  if name == 'open a device' and not os.path.exists('/dev/null'):
    pytest.skip('this machine has no devices')
  if name == 'read passwd' and not os.access('/etc/passwd', os.R_OK):
    pytest.skip('this machine has no such file')
  # A listener that answers nothing would hold the client up.
  done = subprocess.run(
      [sys.executable, '-c', _ATTEMPTS[name][0].format(**host)],
      capture_output=True, text=True, check=False, timeout=20,
  )  # fmt: skip
  assert 'ESCAPED' in done.stdout, done.stderr


@pytest.mark.parametrize(
  'made',
  [
    'os.mkdir(p)',
    'os.symlink("x" * 4000, p)',
    'open(p, "w").close()',
    'os.link("/tmp/first", p)',
  ],
)
def test_files_without_content_are_bounded(made):
  """The kernel keeps a kilobyte of each, which counts to no process."""
  try:
    tool = python_tool.make('bubblewrap', _LIMITS)
  except base.ToolUnavailable as error:
    pytest.skip(str(error))
  if 'under /tmp' not in tool.card.limits:
    pytest.skip('no file system can be mounted here')
  program = (
    'import os\nopen("/tmp/first", "w").close()\nn = 0\ntry:\n'
    f'  for n in range(20000):\n    p = f"/tmp/{{n}}"\n    {made}\n'
    'except OSError as e: print(n < 3000, e.strerror)'
  )
  assert _run(tool, program) == 'True No space left on device'


def test_there_are_enough_attempts():
  assert len(_ATTEMPTS) >= 30


@pytest.mark.parametrize(
  'program',
  [
    'while True: pass',
    'import re\nwhile True: re.match("(a|aa)+$", "a" * 60 + "b")',
    'while True: 10 ** 10 ** 9',
    'import signal\n'
    'for s in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):\n'
    '  signal.signal(s, signal.SIG_IGN)\nwhile True: pass',
    'import time\ntime.sleep(10**6)',
    'import os, time\nos.close(1)\nos.close(2)\ntime.sleep(10**6)',
  ],
)
def test_endless_programs_end(tool, program):
  said = _run(tool, program)
  if 'sleep' in program and 'session' in tool.card.name:
    return  # The clock of a session stands still, so that sleeping takes no time.
  assert 'the program failed' in said


@pytest.mark.parametrize(
  'program',
  [
    'while True: print("x" * 1000)',
    'print("y" * 10**7)',
    'import sys\nwhile True: sys.stderr.write("x" * 1000)',
    'import os\nwhile True: os.write(1, b"\\xff" * 4096)',
  ],
)
def test_endless_output_is_cut(tool, program):
  said = _run(tool, program)
  assert len(said) <= _LIMITS.output_bytes + 600


@pytest.mark.parametrize(
  'program',
  [
    'import sys\nsys.stderr.write("bwrap: cannot start")\nsys.exit(1)',
    'import os\nos._exit(125)',
    'import os\nos._exit(127)',
    'import os\nos.kill(os.getpid(), 9)',
    'import os\nos.close(0); os.close(1); os.close(2)\nos.abort()',
    'import ctypes\nctypes.string_at(0)',
    'raise SystemExit("the sandbox did not start")',
    'import os\nos.write(2, b"\\0sandbox ready\\0\\n")\n1/0',
    'raise KeyboardInterrupt',
  ],
)
def test_a_program_cannot_pretend_to_be_an_outage(tool, program):
  """An outage takes a rollout out of the statistics, a failure costs it."""
  with pytest.raises(base.BadArguments):
    asyncio.run(tool.call({'code': program}))
