"""A seccomp filter: the system calls that a sandboxed program may make.

The filter is a list of what Python, NumPy and SymPy need; every other call
fails as if the kernel did not have it. It closes what namespaces leave open:
new processes and threads (root is not bound by RLIMIT_NPROC, and a limit on
address space bounds one process only), sockets of every family (AF_VSOCK knows
no network namespace), the kernel's key rings, memory that counts to no process
(memfd, System V shared memory, message queues, large pipes), nested namespaces,
ptrace, io_uring, bpf and whatever the next kernel brings.

Reference: linux/Documentation/userspace-api/seccomp_filter.rst.
"""

import errno
import platform
import struct

# name/x86_64/aarch64; '-' where an architecture does not have the call.
ALLOWED = """
read/0/63 write/1/64 readv/19/65 writev/20/66 pread64/17/67 pwrite64/18/68
lseek/8/62 open/2/- openat/257/56 creat/85/- close/3/57 close_range/436/436
stat/4/- fstat/5/80 lstat/6/- newfstatat/262/79 statx/332/291 access/21/-
faccessat/269/48 faccessat2/439/439 readlink/89/- readlinkat/267/78
getdents/78/- getdents64/217/61 getcwd/79/17 chdir/80/49 fchdir/81/50
umask/95/166 fsync/74/82 fdatasync/75/83 truncate/76/45 ftruncate/77/46
mkdir/83/- mkdirat/258/34 rmdir/84/- unlink/87/- unlinkat/263/35
rename/82/- renameat/264/38 renameat2/316/276 link/86/- linkat/265/37
symlink/88/- symlinkat/266/36 chmod/90/- fchmod/91/52 fchmodat/268/53
utimensat/280/88 sendfile/40/71 getxattr/191/8 lgetxattr/192/9
fgetxattr/193/10 listxattr/194/11 llistxattr/195/12 flistxattr/196/13
dup/32/23 dup2/33/- dup3/292/24 pipe/22/- pipe2/293/59

mmap/9/222 munmap/11/215 mprotect/10/226 mremap/25/216 brk/12/214
madvise/28/233 msync/26/227

poll/7/- ppoll/271/73 select/23/- pselect6/270/72 epoll_create/213/-
epoll_create1/291/20 epoll_ctl/233/21 epoll_wait/232/- epoll_pwait/281/22
eventfd2/290/19 futex/202/98 nanosleep/35/101 clock_nanosleep/230/115
pause/34/- alarm/37/- setitimer/38/103 getitimer/36/102

rt_sigaction/13/134 rt_sigprocmask/14/135 rt_sigreturn/15/139
rt_sigpending/127/136 rt_sigtimedwait/128/137 rt_sigsuspend/130/133
sigaltstack/131/132 restart_syscall/219/128 kill/62/129 tkill/200/130
tgkill/234/131

clock_gettime/228/113 clock_getres/229/114 gettimeofday/96/169 time/201/-
times/100/153 getrusage/98/165 uname/63/160 getpid/39/172 getppid/110/173
gettid/186/178 getuid/102/174 geteuid/107/175 getgid/104/176 getegid/108/177
getresuid/118/148 getresgid/120/150 getgroups/115/158 getpgid/121/155
getpgrp/111/- getsid/124/156 getrlimit/97/163 setrlimit/160/164
getpriority/140/141 sched_getaffinity/204/123 sched_yield/24/124 getcpu/309/168
getrandom/318/278

execve/59/221 arch_prctl/158/- set_tid_address/218/96 set_robust_list/273/99
rseq/334/293 wait4/61/260 waitid/247/95 exit/60/93 exit_group/231/94

sendto/44/206 recvfrom/45/207 shutdown/48/210 getsockopt/55/209
getsockname/51/204 getpeername/52/205
"""

# Fail with "operation not permitted", which tells a model more than "function
# not implemented"; clone3 is not here, so that the C library tries clone.
REFUSED = 'clone/56/220 fork/57/- vfork/58/- socket/41/198 ptrace/101/117'

# Calls allowed for some values of one argument (its low 32 bits, which is all
# that the kernel reads of these): (call, argument's place, values).
CHECKED = (
  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: no pipe is
  # made larger, no host file is locked or leased.
  ('fcntl/72/25', 1, (0, 1, 2, 3, 4, 1030)),
  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
  ('ioctl/16/29', 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
  # A connected pair of local sockets, which asyncio wakes itself with.
  ('socketpair/53/199', 0, (1,)),
  # Its own limits only.
  ('prlimit64/302/261', 0, (0,)),
)

_ARCHITECTURES = {
  # machine: (column in the tables above, AUDIT_ARCH_* of linux/audit.h)
  'x86_64': (1, 0xC000003E),
  'aarch64': (2, 0xC00000B7),
}

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, RET|K
_ALLOW = 0x7FFF0000  # SECCOMP_RET_ALLOW
_KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS
_ERRNO = 0x00050000  # SECCOMP_RET_ERRNO
# Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


def supported(machine: str | None = None) -> bool:
  """Whether there is a table of system calls for this architecture."""
  return (machine or platform.machine()) in _ARCHITECTURES


def build(machine: str | None = None) -> bytes:
  """Assembles the filter as an array of `struct sock_filter`.

  Args:
    machine: name of the machine, as `platform.machine()` returns it; this machine by
      default.

  Raises:
    KeyError: there is no table for it; ask `supported` first.
  """
  column, architecture = _ARCHITECTURES[machine or platform.machine()]
  code = [
    _op(_LOAD, _ARCHITECTURE),
    _op(_EQUAL, architecture, skip_if=1),
    _op(_RETURN, _KILL),
    _op(_LOAD, _NUMBER),
  ]
  for call, argument, values in CHECKED:
    body = [_op(_LOAD, _ARGUMENTS + 8 * argument)]
    for value in values:
      body += [_op(_EQUAL, value, skip_unless=1), _op(_RETURN, _ALLOW)]
    body.append(_op(_RETURN, _ERRNO | errno.EPERM))
    number = _numbers(call, column)[0]
    code += [_op(_EQUAL, number, skip_unless=len(body)), *body]
  for table, answer in ((ALLOWED, _ALLOW), (REFUSED, _ERRNO | errno.EPERM)):
    for number in _numbers(table, column):
      code += [_op(_EQUAL, number, skip_unless=1), _op(_RETURN, answer)]
  # Also the x32 calls, whose numbers carry a bit of their own.
  code.append(_op(_RETURN, _ERRNO | errno.ENOSYS))
  return b''.join(code)


def _numbers(table: str, column: int) -> list[int]:
  entries = (entry.split('/') for entry in table.split())
  return [int(entry[column]) for entry in entries if entry[column] != '-']


def _op(opcode: int, operand: int, skip_if: int = 0, skip_unless: int = 0) -> bytes:
  return struct.pack('=HBBI', opcode, skip_if, skip_unless, operand)
