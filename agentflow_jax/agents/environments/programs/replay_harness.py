"""Runs inside the bubblewrap sandbox: repeats earlier programs, then runs the next.

Its source is handed to the sandbox as the program; nothing imports it. It speaks with
the host over a socket, a line of JSON for each message: the host tells what to run;
calls are asked and answered; in the end the outcome is told.
"""

import ast
import builtins
import datetime
import json
import os
import random
import re
import sys
import time
import uuid

_FILE = '<turn>'  # The sandbox calls this harness '<program>'.
# An address in the text of an object; it differs from one process to the next.
_ADDRESS = re.compile(r' at 0x[0-9a-f]+')
_MOST_CHARACTERS = 20_000  # Of the arguments of one call.
_COROUTINE = 128  # inspect.CO_COROUTINE; importing inspect and asyncio takes long.


class Differs(BaseException):
  """A repeated program calls something else than it did at first."""


class Text(str):
  """The result of a call, which may be awaited, too."""

  def __await__(self):
    return self
    yield  # pylint: disable=unreachable


Text.__name__ = Text.__qualname__ = 'str'


class Printed:
  """What a program prints, up to a limit; of a repeated one nothing is kept."""

  def __init__(self, most):
    self.left, self.pieces, self.cut = most, [], False

  def write(self, text):
    text = str(text)
    said = text.encode('utf-8', 'replace')
    self.cut = self.cut or len(said) > self.left
    said = said[: self.left]
    self.left -= len(said)
    self.pieces.append(said.decode('utf-8', 'ignore'))
    return len(text)

  def flush(self):
    pass

  def isatty(self):
    return False


class Real(type):
  """The type of a clock: what the class that it stands for made is one, too."""

  def __instancecheck__(cls, value):
    return isinstance(value, cls.__mro__[1])


def still(date, seed):
  """Stops the clock, and seeds what is random."""
  now = datetime.datetime.fromisoformat(date)
  seconds = (now - datetime.datetime(1970, 1, 1)).total_seconds()

  class Still(datetime.datetime, metaclass=Real):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
      here = cls.fromisoformat(date)
      if tz is None:
        return here
      return here.replace(tzinfo=datetime.UTC).astimezone(tz)

    @classmethod
    def utcnow(cls):
      return cls.now()

    @classmethod
    def today(cls):
      return cls.now()

  class Today(datetime.date, metaclass=Real):
    """A calendar that stands still."""

    @classmethod
    def today(cls):
      return cls(now.year, now.month, now.day)

  Still.__name__ = Still.__qualname__ = 'datetime'
  Today.__name__ = Today.__qualname__ = 'date'
  datetime.datetime, datetime.date = Still, Today
  for name in ('time', 'monotonic', 'perf_counter', 'process_time', 'thread_time'):
    setattr(time, name, lambda: seconds)
    setattr(time, f'{name}_ns', lambda: int(seconds) * 10**9)
  time.clock_gettime = lambda clock: seconds
  time.clock_gettime_ns = lambda clock: int(seconds) * 10**9
  gmtime, asctime, strftime = time.gmtime, time.asctime, time.strftime
  time.gmtime = time.localtime = lambda at=None: gmtime(seconds if at is None else at)
  time.ctime = lambda at=None: asctime(time.gmtime(at))
  time.asctime = lambda t=None: asctime(time.gmtime() if t is None else t)
  time.strftime = lambda form, t=None: strftime(form, time.gmtime() if t is None else t)
  time.sleep = lambda seconds: None
  random.seed(seed)
  drawn = random.Random(seed)
  os.urandom = random.__dict__['_urandom'] = drawn.randbytes
  os.getrandom = lambda size, flags=0: drawn.randbytes(size)
  uuid.__dict__['_generate_time_safe'] = None
  uuid.getnode = lambda: 1


def timeless(asyncio):
  """Lets no coroutine wait for a clock that stands still."""
  moment = asyncio.sleep

  async def sleep(delay, result=None):
    await moment(0)
    return result

  asyncio.sleep = sleep


class Session:
  """A namespace, and the socket to the host."""

  def __init__(self, descriptor):
    self.descriptor, self.received = descriptor, b''
    self.names = {'__name__': '__main__', '__builtins__': builtins}
    self.recorded: list | None = None  # Calls of the program that is repeated.

  def told(self):
    while b'\n' not in self.received:
      more = os.read(self.descriptor, 65536)
      if not more:
        os._exit(0)  # pylint: disable=protected-access
      self.received += more
    line, _, self.received = self.received.partition(b'\n')
    return json.loads(line)

  def tell(self, message):
    said = json.dumps(message).encode() + b'\n'
    while said:
      said = said[os.write(self.descriptor, said) :]

  def function(self, name):
    def function(*args, **kwargs):
      said = json.dumps([name, args, kwargs], default=unfit)
      if len(said) > _MOST_CHARACTERS:
        raise ValueError(f'arguments hold more than {_MOST_CHARACTERS:,} characters')
      asked = json.loads(said)
      if self.recorded is None:
        self.tell({'call': asked})
        answer = self.told()
      elif not self.recorded or self.recorded[0]['call'] != asked:
        raise Differs
      else:
        answer = self.recorded.pop(0)
      if answer['failed']:
        raise ValueError(answer['text'])
      return Text(answer['text'])

    function.__name__ = function.__qualname__ = name
    return function

  def run(self, program):
    """Runs a program; returns the text of its last value, and its error."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
      tree = compile(program, _FILE, 'exec', flags | ast.PyCF_ONLY_AST)
      last = None
      if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
      value = self.executed(compile(tree, _FILE, 'exec', flags))
      if last is not None:
        value = self.executed(compile(last, _FILE, 'eval', flags))
      text = '' if value is None else (value if isinstance(value, str) else repr(value))
      return str(text), ''
    except Differs:
      raise
    except SystemExit as error:
      return '', described(error) if error.code else ''
    except BaseException as error:  # pylint: disable=broad-exception-caught
      return '', described(error)

  def executed(self, code):
    value = eval(code, self.names)  # pylint: disable=eval-used
    if code.co_flags & _COROUTINE:
      import asyncio  # pylint: disable=g-import-not-at-top

      return asyncio.run(value)
    return value


def unfit(value):
  raise ValueError(
    'arguments are texts, numbers, booleans, None, and lists and dicts of these, not'
    f' {type(value).__name__}'
  )


def described(error):
  line, trace = getattr(error, 'lineno', None), error.__traceback__
  while trace is not None:
    if trace.tb_frame.f_code.co_filename == _FILE:
      line = trace.tb_lineno
    trace = trace.tb_next
  text = str(error.msg or '') if isinstance(error, SyntaxError) else str(error)
  said = f'{type(error).__name__}: {" ".join(text.split())[:400]}'.removesuffix(': ')
  return f'{said} (line {line})' if line else said


def main(descriptor):
  """Does what the host tells, and tells what came of it."""
  session = Session(descriptor)
  told = session.told()
  if 'asyncio' in told['program'] + ''.join(e['program'] for e in told['history']):
    import asyncio  # pylint: disable=g-import-not-at-top

    timeless(asyncio)
  still(told['date'], told['seed'])
  for name in told['functions']:
    session.names[name] = session.function(name)
  try:
    for earlier in told['history']:
      sys.stdout = sys.stderr = Printed(0)
      session.recorded = list(earlier['calls'])
      session.run(earlier['program'])
      if session.recorded:
        raise Differs
  except Differs:
    session.tell({'differs': True})
    return
  session.recorded = None
  sys.stdout = sys.stderr = printed = Printed(told['output_bytes'])
  value, error = session.run(told['program'])
  hidden = {*told['functions'], '__builtins__', '__name__'}
  kinds = {
    name: type(value).__name__
    for name, value in list(session.names.items())[:1000]
    if name not in hidden and not name.startswith('__')
  }
  session.tell(
    {
      'done': {
        'output': _ADDRESS.sub('', ''.join(printed.pieces)),
        'cut': printed.cut,
        'value': _ADDRESS.sub('', value[:10000]),
        'error': _ADDRESS.sub('', error),
        'names': kinds,
      }
    }
  )
