"""Sessions by interpretation: pydantic-monty, see agents.tools.python.monty.

Programs run in the worker processes of a pool, one at a time in each. After a program
its namespace is written as bytes, and the worker forgets it.
"""

import asyncio
import builtins
import datetime
import json
import keyword
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax.agents.environments.programs import sessions
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import monty

# Largest heap of a program: what it hands to us becomes objects of this process.
MEMORY_BYTES = 64 * 2**20
_NAME = re.compile(r'(?<![\w.])[A-Za-z_]\w*')
_NOT_NAMES = frozenset({*keyword.kwlist, *dir(builtins)})
# Most words of a program that are tried as names of its namespace.
_TRIED = 200
_PROBE = '__names__'  # Name of a list that only asks for other names.
# What monty's exceptions say at a limit that leaves no guarantees on the heap.
_AT_LIMIT = re.compile(
  r'TimeoutError: (?:feed|turn) time limit exceeded'
  r'|MemoryError: memory limit exceeded'
)


class MontySessions:
  """Runs programs in a pool of monty workers; see sessions.Sessions.

  Args:
    limits: bounds of a session.
    workers: number of programs at a time; None for two a processor, because a program
      spends much of its time waiting for answers of this process.

  Raises:
    tools.base.ToolUnavailable: monty is not installed or does not work here.
  """

  name = 'monty'
  card_limits = (
    f'{monty.Monty.card_limits}; functions are called one after the other, and not'
    ' inside sorted, map or gather'
  )

  def __init__(self, limits: sessions.Limits, workers: int | None = None):
    monty.Monty(limits.program)  # Tries whether it works, and whether it holds.
    self._limits = limits
    self._workers = workers or 2 * (os.cpu_count() or 1)
    self._directory: tempfile.TemporaryDirectory | None = None
    self._pool: Any = None
    self._opening: asyncio.Future | None = None

  async def run(self, state, program, call, start):
    """See Sessions.run."""
    library = _library()
    known, dump = _read(state)
    buffer = sessions.OutputBuffer(self._limits.program.output_bytes)

    def stopped(error: str) -> sessions.Outcome:
      return sessions.Outcome(
        state, buffer.text, buffer.cut, error=error, stopped=True, variables=known
      )

    try:
      pool = await self._opened()
      async with pool.checkout(
        script_name='program', limits=self._bounds(), os_policy=_policy(start)
      ) as session:
        if dump:
          await session.load_session(dump)
        run = _Run(session, call, start.functions, buffer, self._limits.calls)
        await run.feed(program)
        if run.finished:
          return sessions.Outcome(
            state, buffer.text, buffer.cut, finished=True, variables=known
          )
        if _AT_LIMIT.match(run.error):
          return stopped(run.error)
        kinds = await _kinds(
          session, _candidates(program, known, start.functions), known
        )
        left = _written(kinds, await session.dump())
    except (library.MontySyntaxError, library.MontyRuntimeError) as e:
      return stopped(_one_line(e))  # Looking at its names took too much.
    except library.MontyCrashedError as e:
      said = 'ran too long' if e.timed_out else 'needed more memory than there is'
      return stopped(f'the program {said}')
    except (OSError, RuntimeError, library.MontyError) as e:
      raise base.ToolUnreachable(f'monty failed: {type(e).__name__}: {e}') from e
    if len(left) > self._limits.state_bytes:
      return stopped(
        f'its names take {len(left):,} bytes, of {self._limits.state_bytes:,}'
      )
    return sessions.Outcome(
      left, buffer.text, buffer.cut, run.value, run.error, variables=kinds
    )

  async def close(self):
    """See Sessions.close."""
    pool, self._pool, self._opening = self._pool, None, None
    if pool is not None:
      await pool.__aexit__(None, None, None)
      if self._directory is not None:
        self._directory.cleanup()

  def _bounds(self) -> Any:
    program = self._limits.program
    return {
      'max_feed_duration_secs': program.cpu_seconds,
      'max_memory': min(program.memory_bytes, MEMORY_BYTES),
      # Names that are looked up count, too; calls are counted by us.
      'max_suspensions': 10 * self._limits.calls + 1000,
    }

  async def _opened(self):
    if self._pool is None:
      self._directory = tempfile.TemporaryDirectory(prefix='monty')
      pool = _library().AsyncMonty(
        binary_path=self._launcher(self._directory.name),
        max_processes=self._workers,
        checkout_timeout=None,  # A rollout's deadline bounds the wait.
      )
      self._pool, self._opening = pool, asyncio.ensure_future(pool.__aenter__())
    if self._opening is not None and not self._opening.done():
      await asyncio.shield(self._opening)
    return self._pool

  def _launcher(self, directory: str) -> pathlib.Path:
    """Writes a program that becomes monty, with bounds and in the root directory."""
    path = pathlib.Path(directory) / 'monty'
    path.write_text(
      f'#!/bin/sh\n{monty.bounded_shell(self._limits.program)}'
      f' && cd / && exec {monty.quoted_binary()} "$@"\nexit 125\n',
      encoding='utf-8',
    )
    path.chmod(0o700)
    return path


class _Run:
  """One program on its way.

  Attributes:
    value: text of the value of its last expression; '' for none.
    error: exception that ended it, in one line; '' for none.
    finished: whether a call of it ended the episode.
  """

  def __init__(self, session, call, functions, buffer, most_calls):
    self._session, self._call, self._buffer = session, call, buffer
    self._functions, self._left = frozenset(functions), most_calls
    self._awaited: dict[int, Any] = {}
    self.value = self.error = ''
    self.finished = False

  async def feed(self, program: str) -> None:
    """Runs the program to its end, and makes its calls."""
    library = _library()
    try:
      at = await self._session.feed_start(
        program, print_callback=lambda stream, text: self._buffer.add(text)
      )
      while not isinstance(at, library.MontyComplete):
        at = await self._answered(at)
      value = at.output
      if value is not None:
        self.value = value if isinstance(value, str) else sessions.shown(value)
    except sessions.Finished:
      self.finished = True
    except (library.MontySyntaxError, library.MontyRuntimeError) as e:
      self.error = _one_line(e)

  async def _answered(self, at):
    """Answers what the program waits for, and returns what it waits for next."""
    library = _library()
    if isinstance(at, library.AsyncNameLookupSnapshot):
      name = at.variable_name
      if name in self._functions and at.object_id is None:
        return await at.resume(value=_function(name))
      return await at.resume()
    if isinstance(at, library.AsyncFutureSnapshot):
      return await at.resume(
        {number: self._awaited.pop(number) for number in at.pending_call_ids}
      )
    if at.is_os_function:
      return await at.resume_not_handled()
    awaited, number = at.allow_eager_await, at.call_id
    answer = await self._answer(at)
    if not awaited:
      return await at.resume(answer)
    self._awaited[number] = answer
    return await at.resume({'future': ...})

  async def _answer(self, at) -> Mapping[str, Any]:
    name = at.function_name
    if name not in self._functions or at.object_id is not None:
      return {'exception': NameError(f'name {name!r} is not defined')}
    self._left -= 1
    if self._left < 0:
      return {'exception': RuntimeError('the program made too many calls')}
    try:
      return {'return_value': await self._call(name, at.args, at.kwargs)}
    except RecursionError:
      return {'exception': ValueError('an argument is too deep')}
    except sessions.CallFailed as e:
      return {'exception': ValueError(str(e))}


def _function(name: str):
  """Returns what stands for a function of ours in a program; it is never called."""

  def function(*args, **kwargs):
    raise NotImplementedError(args, kwargs)

  function.__name__ = function.__qualname__ = name
  return function


def _candidates(
  program: str, known: Mapping[str, str], functions: Sequence[str]
) -> list[str]:
  """Returns what may be a name of the namespace after a program."""
  words = dict.fromkeys(_NAME.findall(program))
  new = [
    w
    for w in words
    if w.isidentifier()
    and w not in _NOT_NAMES
    and w not in functions
    and not w.startswith('__')
  ]
  return list(dict.fromkeys([*known, *new[:_TRIED]]))


async def _kinds(
  session, candidates: Sequence[str], known: Mapping[str, str]
) -> dict[str, str]:
  """Returns the types of those names that the namespace holds.

  A program may give the name `type` to something else, and then the question fails.
  The result is then `known`, the types before the program.
  """
  if not candidates:
    return {}
  # An answer to a look-up would stay in the namespace, so undefined names are errors.
  tries = [
    f'try:\n  {_PROBE}.append(({name!r}, type({name}).__name__))\n'
    'except NameError:\n  pass'
    for name in candidates
  ]
  try:
    found = await session.feed_run('\n'.join([f'{_PROBE} = []', *tries, _PROBE]))
    return {str(name): str(kind)[:100] for name, kind in found}
  except (TypeError, ValueError):
    return dict(known)
  except _library().MontyRuntimeError as e:
    if _AT_LIMIT.match(_one_line(e)):
      raise
    return dict(known)


def _policy(start: sessions.Start) -> Mapping[str, Any]:
  return {
    'datetime': datetime.datetime.fromisoformat(start.date),
    'random_start': {'seed': start.seed},
    'sleep': 'zero',
  }


def _one_line(error) -> str:
  """Returns an exception in one line, with the line of the program."""
  said = ' '.join(error.display('type-msg').split())
  frames = error.traceback()  # The program's own first; functions may be older.
  lines = [f.line for f in frames if f.filename == frames[0].filename]
  return f'{said} (line {lines[-1]})' if lines else said


def _written(kinds: Mapping[str, str], dump: bytes) -> bytes:
  return json.dumps(kinds).encode() + b'\n' + dump


def _read(state: bytes) -> tuple[dict[str, str], bytes]:
  """Returns the types of a namespace's names, and monty's own bytes of it."""
  kinds, _, dump = state.partition(b'\n')
  return json.loads(kinds or b'{}'), dump


def _library():
  """Imports pydantic_monty, which not every installation has."""
  import pydantic_monty  # pylint: disable=g-import-not-at-top

  return pydantic_monty
