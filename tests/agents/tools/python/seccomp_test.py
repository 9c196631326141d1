"""Tests of the system call filter, by an interpreter of its program."""

import errno
import platform
import struct

import pytest

from agentflow_jax.agents.tools.python import seccomp

_ALLOW, _KILL = 'allow', 'kill'
_X86, _ARM = 0xC000003E, 0xC00000B7


def _decide(program: bytes, architecture: int, number: int, *arguments: int):
  """What the kernel would decide: 'allow', 'kill' or an error number."""
  padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
  data = struct.pack('=IIQ6Q', number, architecture, 0, *padded)
  code = list(struct.iter_unpack('=HBBI', program))
  at, loaded = 0, 0
  while True:
    opcode, skip_if, skip_unless, operand = code[at]
    at += 1
    if opcode == 0x20:
      (loaded,) = struct.unpack_from('=I', data, operand)
    elif opcode == 0x15:
      at += skip_if if loaded == operand else skip_unless
    elif opcode == 0x06:
      if operand == 0x7FFF0000:
        return _ALLOW
      if operand == 0x80000000:
        return _KILL
      assert operand & 0xFFFF0000 == 0x00050000
      return operand & 0xFFFF
    else:
      raise AssertionError(f'unknown instruction {opcode:#x}')


# (call, x86_64, aarch64), from the kernel's own tables.
@pytest.mark.parametrize(
    'numbers',
    [
        (0, 63), (1, 64), (257, 56), (9, 222), (59, 221), (231, 94), (318, 278),
        (202, 98), (13, 134), (39, 172), (98, 165), (262, 79), (5, 80),
        (228, 113), (61, 260), (44, 206), (3, 57),
    ],
)  # fmt: skip
def test_allows_what_python_needs(numbers):
  for machine, architecture, number in zip(
    ('x86_64', 'aarch64'), (_X86, _ARM), numbers
  ):
    assert _decide(seccomp.build(machine), architecture, number) == _ALLOW


@pytest.mark.parametrize(
    'name, x86, arm',
    [
        ('clone', 56, 220), ('clone3', 435, 435), ('socket', 41, 198),
        ('connect', 42, 203), ('bind', 49, 200), ('ptrace', 101, 117),
        ('process_vm_readv', 310, 270), ('process_vm_writev', 311, 271),
        ('keyctl', 250, 219), ('add_key', 248, 217), ('bpf', 321, 280),
        ('perf_event_open', 298, 241), ('userfaultfd', 323, 282),
        ('io_uring_setup', 425, 425), ('memfd_create', 319, 279),
        ('shmget', 29, 194), ('msgget', 68, 186), ('unshare', 272, 97),
        ('setns', 308, 268), ('mount', 165, 40), ('move_mount', 429, 429),
        ('open_by_handle_at', 304, 265), ('chroot', 161, 51),
        ('pivot_root', 155, 41), ('prctl', 157, 167), ('setuid', 105, 146),
        ('capset', 126, 91), ('personality', 135, 92), ('kexec_load', 246, 104),
        ('init_module', 175, 105), ('flock', 73, 32), ('setsid', 112, 157),
        ('pidfd_getfd', 438, 438), ('memfd_secret', 447, 447),
        ('sched_setaffinity', 203, 122), ('sendmsg', 46, 211),
        ('a call yet to come', 999, 999),
    ],
)  # fmt: skip
def test_refuses_the_rest(name, x86, arm):
  del name
  for machine, architecture, number in (
      ('x86_64', _X86, x86), ('aarch64', _ARM, arm),
  ):  # fmt: skip
    said = _decide(seccomp.build(machine), architecture, number)
    assert said in (errno.EPERM, errno.ENOSYS)


def test_another_architecture_is_killed():
  assert _decide(seccomp.build('x86_64'), 0x40000003, 4) == _KILL  # i386
  assert _decide(seccomp.build('x86_64'), _ARM, 64) == _KILL


def test_numbers_of_the_x32_interface_are_refused():
  x86 = seccomp.build('x86_64')
  for number in (0, 1, 56, 59, 41):
    assert _decide(x86, _X86, 0x40000000 + number) == errno.ENOSYS


def test_clone3_lets_the_library_fall_back():
  assert _decide(seccomp.build('x86_64'), _X86, 435) == errno.ENOSYS
  assert _decide(seccomp.build('x86_64'), _X86, 56) == errno.EPERM


@pytest.mark.parametrize(
  'number, arguments, decision',
  [
    (72, (0, 1), _ALLOW),  # fcntl F_GETFD
    (72, (0, 1030), _ALLOW),  # F_DUPFD_CLOEXEC
    (72, (0, 1031), errno.EPERM),  # F_SETPIPE_SZ
    (72, (0, 6), errno.EPERM),  # F_SETLK
    (72, (0, 1024), errno.EPERM),  # F_SETLEASE
    # The kernel reads 32 bits of a command, so must the filter.
    (72, (0, 2**32 + 1031), errno.EPERM),
    (16, (0, 0x5401), _ALLOW),  # ioctl TCGETS
    (16, (0, 0x5412), errno.EPERM),  # TIOCSTI
    (16, (0, 2**32 + 0x5412), errno.EPERM),
    (53, (1, 1, 0), _ALLOW),  # socketpair AF_UNIX
    (53, (30, 1, 0), errno.EPERM),  # AF_TIPC
    (302, (0, 9), _ALLOW),  # prlimit64 of itself
    (302, (1, 9), errno.EPERM),
  ],
)
def test_checks_arguments(number, arguments, decision):
  assert _decide(seccomp.build('x86_64'), _X86, number, *arguments) == decision


def test_fits_the_kernels_bound_and_this_machine():
  for machine in ('x86_64', 'aarch64'):
    assert seccomp.supported(machine)
    assert len(seccomp.build(machine)) // 8 <= 4096  # BPF_MAXINSNS
  assert not seccomp.supported('riscv64')
  assert seccomp.supported() == (platform.machine() in ('x86_64', 'aarch64'))


def test_every_call_is_listed_once():
  entries = seccomp.ALLOWED.split() + seccomp.REFUSED.split()
  entries += [call for call, _, _ in seccomp.CHECKED]
  for column in (0, 1, 2):
    values = [e.split('/')[column] for e in entries]
    values = [v for v in values if v != '-']
    assert len(values) == len(set(values))
