"""Runs inside the bubblewrap sandbox: sets limits, then becomes the program.

Its source is handed to the sandboxed interpreter with -c; nothing imports it.
The program comes on standard input, which is at its end when it starts. Takes
limits (CPU seconds, bytes of memory, bytes of a file) and the import path as
arguments. It imports little, because every import is paid for at every call.
"""

import sys


def main() -> None:
  """Sets the limits, says that the sandbox stands, and runs the program."""
  import builtins  # pylint: disable=g-import-not-at-top
  import posix  # pylint: disable=g-import-not-at-top
  import resource  # pylint: disable=g-import-not-at-top

  cpu_seconds, memory_bytes, file_bytes = (int(a) for a in sys.argv[1:4])
  for name, soft, hard in (
    ('AS', memory_bytes, memory_bytes),
    # At the soft limit the program is told, and ends unless it asks not to.
    ('CPU', cpu_seconds, cpu_seconds + 1),
    ('FSIZE', file_bytes, file_bytes),
    ('NOFILE', 64, 64),
    ('NPROC', 0, 0),
    ('CORE', 0, 0),
    ('MEMLOCK', 0, 0),
    ('MSGQUEUE', 0, 0),
    ('SIGPENDING', 64, 64),
  ):
    resource.setrlimit(getattr(resource, f'RLIMIT_{name}'), (soft, hard))
  sys.path[:] = sys.argv[4:]
  sys.argv[:] = ['program.py']
  # What is left there only told this interpreter how to start.
  posix.environ.clear()
  source = sys.stdin.read()
  # `site`, which we do without, would have made these.
  builtins.exit = builtins.quit = sys.exit
  sys.excepthook = report
  program = type(sys)('__main__')
  sys.modules['__main__'] = program
  # From here on whatever goes wrong is the program's doing. It cannot have
  # kept this line from being written, so it cannot pretend to be an outage.
  posix.write(2, b'\0sandbox ready\0\n')
  code = compile(source, '<program>', 'exec')
  exec(code, program.__dict__)  # pylint: disable=exec-used


def report(kind, error, trace) -> None:
  """Writes an exception as one line with the program's line number."""
  if isinstance(error, SyntaxError):
    line, text = error.lineno, error.msg
  else:
    line, text = None, str(error)
    while trace is not None:
      if trace.tb_frame.f_code.co_filename == '<program>':
        line = trace.tb_lineno
      trace = trace.tb_next
  text = ' '.join(text.split())[:400]
  said = f'{kind.__name__}: {text}' if text else kind.__name__
  where = f' (line {line})' if line else ''
  sys.stderr.write(f'\n{said}{where}\n')


if __name__ == '__main__':
  main()
