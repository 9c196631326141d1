"""Sessions of full CPython: every program is run after those before it.

Nothing can write down the namespace of CPython, so its state is the list of programs
and of what their calls returned. Each program gets a sandbox of its own, see
agents.tools.python.bubblewrap, in which the earlier ones are repeated first; their
calls are answered from the list, and not made again.
"""

import asyncio
import dataclasses
import json
import pathlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax.agents.environments.programs import sessions
from agentflow_jax.agents.tools.python import bubblewrap, sandbox

# Each program repeats all earlier ones, so the work grows with their square.
MOST_PROGRAMS = 12
_MOST_BYTES = 2**22  # Longest message of a program.
_SECONDS_TO_END = 2.0


class ReplayedSessions:
  """Runs programs in sandboxes of CPython; see sessions.Sessions.

  Args:
    limits: bounds of a session. Time counts from the beginning of the first program
      that is repeated, and there is as much for each.
    concurrency: number of programs at a time; None for the number of processors.

  Raises:
    tools.base.ToolUnavailable: this machine cannot make the sandbox.
  """

  name = 'bubblewrap'

  def __init__(self, limits: sessions.Limits, concurrency: int | None = None):
    self._limits = limits
    self._sandbox = bubblewrap.Bubblewrap(limits.program)
    self.card_limits = self._sandbox.card_limits
    # A rollout's deadline bounds the wait.
    self._turns = sandbox.Turns(concurrency, float('inf'))
    harness = pathlib.Path(__file__).with_name('replay_harness.py')
    self._harness = harness.read_text(encoding='utf-8')

  async def run(self, state, program, call, start):
    """See Sessions.run."""
    before = json.loads(state or b'{"programs": [], "names": {}}')
    history, known = before['programs'], before['names']

    def stopped(why: str) -> sessions.Outcome:
      return sessions.Outcome(state, error=why, stopped=True, variables=known)

    if len(history) >= MOST_PROGRAMS:
      return stopped(f'there are {MOST_PROGRAMS} programs at most')
    told = {
      'history': history,
      'program': program,
      'functions': start.functions,
      'seed': start.seed,
      'date': start.date,
      'output_bytes': self._limits.program.output_bytes,
    }
    run = _Run(call, start.functions, self._limits.calls)
    async with self._turns:
      said, why = await self._conversation(told, run, len(history) + 1)
    if run.finished:
      return sessions.Outcome(state, finished=True, variables=known)
    if said.get('differs'):
      return sessions.Outcome(
        b'',
        error='the earlier programs act differently when they are repeated',
        stopped=True,
        forgotten=True,
      )
    done = _done(said)
    if done is None:
      return stopped(why)
    history.append({'program': program, 'calls': run.made})
    kept = {'programs': history, 'names': done.variables}
    left = json.dumps(kept).encode()
    if len(left) > self._limits.state_bytes:
      return stopped(
        f'the programs and the results of their calls take {len(left):,} bytes, of'
        f' {self._limits.state_bytes:,}'
      )
    return dataclasses.replace(done, state=left)

  async def close(self):
    """See Sessions.close."""

  async def _conversation(self, told, run, programs) -> tuple[Mapping[str, Any], str]:
    """Runs a harness and answers it.

    Returns:
      Its last message, {} where it sent none; and why it sent none.
    """
    program = self._limits.program
    limits = dataclasses.replace(
      program,
      cpu_seconds=program.cpu_seconds * programs,
      # The time of calls is not the program's; what it waits for is bounded below.
      wall_seconds=86400.0,
    )
    ours, theirs = socket.socketpair()
    with theirs:
      ours.setblocking(False)
      try:
        reader, writer = await asyncio.open_connection(sock=ours, limit=_MOST_BYTES)
      except BaseException:
        ours.close()
        raise
      source = f'{self._harness}\nmain({theirs.fileno()})\n'
      process = asyncio.ensure_future(
        self._sandbox.run(source, limits, keep=(theirs.fileno(),))
      )
      process.add_done_callback(lambda _: reader.feed_eof())
      try:
        said = await run.conversed(
          reader, writer, told, program.wall_seconds * programs
        )
        if run.finished or said.keys() & {'done', 'differs'}:
          return said, 'what the program came to cannot be read'
        # It is gone, or says what none of ours says: then it may go on for ever.
        await asyncio.wait({process}, timeout=_SECONDS_TO_END)
        error = process.result().error if process.done() else ''
        if 'processor time' in error and programs > 1:
          error += ', with those before it'
        return {}, error or 'the program ended its interpreter'
      except TimeoutError:
        seconds = program.wall_seconds * programs
        return {}, f'the program ran longer than {seconds:g} s'
      finally:
        # With what was not sent: the socket is closed before its number is used again.
        writer.transport.abort()
        process.cancel()
        await asyncio.wait({process})


class _Run:
  """One program on its way.

  Attributes:
    made: calls that it made, as they are answered when it is repeated.
    finished: whether a call of it ended the episode.
  """

  def __init__(self, call: sessions.Caller, functions: Sequence[str], most_calls: int):
    self._call, self._functions, self._left = call, functions, most_calls
    self.made: list[Mapping[str, Any]] = []
    self.finished = False

  async def conversed(self, reader, writer, told, seconds) -> Mapping[str, Any]:
    """Answers calls until the program is done.

    Args:
      reader, writer: connection to the harness.
      told: first message.
      seconds: time that the program may take, without that of its calls [s].

    Returns:
      The last message; {} where the harness is gone or says what none says.

    Raises:
      TimeoutError: the program took longer.
    """
    loop = asyncio.get_running_loop()
    message = told
    while True:
      before = loop.time()
      async with asyncio.timeout(seconds):
        said = await _answer(reader, writer, message)
      seconds -= loop.time() - before
      asked = said.get('call')
      if asked is None:
        return said
      name, positional, named = _asked(asked)
      if name not in self._functions:  # Only a forged message says so.
        return {}
      try:
        message = await self._made(asked, name, positional, named)
      except sessions.Finished:
        self.finished = True
        return {}

  async def _made(self, asked, name, positional, named) -> Mapping[str, Any]:
    self._left -= 1
    try:
      if self._left < 0:
        raise sessions.CallFailed('the program made too many calls')
      text, failed = await self._call(name, positional, named), False
    except sessions.CallFailed as e:
      text, failed = str(e), True
    self.made.append({'call': asked, 'text': text, 'failed': failed})
    return self.made[-1]


async def _answer(reader, writer, message) -> Mapping[str, Any]:
  """Sends a message, and returns the next one; {} where there is none."""
  try:
    writer.write(json.dumps(message).encode() + b'\n')
    await writer.drain()
    said = json.loads(await reader.readline())
  except (OSError, ValueError, RecursionError):  # Gone, too long, or forged.
    return {}
  return said if isinstance(said, dict) else {}


def _asked(asked: Any) -> tuple[str | None, Sequence[Any], Mapping[str, Any]]:
  """Reads a call; its name is None where it is none, as only a forged one is."""
  match asked:
    case [str(name), list(positional), dict(named)]:
      return name, positional, named
  return None, (), {}


def _done(said: Mapping[str, Any]) -> sessions.Outcome | None:
  """Reads what a harness told in the end; None where that was no outcome."""
  match said.get('done'):
    case {
      'output': str(output),
      'cut': bool(cut),
      'value': str(value),
      'error': str(error),
      'names': dict(names),
    }:
      kinds = {str(name): str(kind) for name, kind in names.items()}
      return sessions.Outcome(
        b'', output, cut, value, error, variables=dict(list(kinds.items())[:1000])
      )
  return None
