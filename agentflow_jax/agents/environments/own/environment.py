"""An environment that a user's own class makes: a file, a class, no server.

    class Till:
      def reset(self, price: int) -> str: ...    # begins an episode; its text is shown
      def pay(self, coin: int) -> str: ...       # public methods are tools
      def verify(self) -> bool: ...              # says how the episode ended

The class is trusted code, like a config. Synchronous methods run in child processes,
one call at a time, on an instance that is pickled between calls; a call that hangs is
killed and takes no other rollout along. A class with an asynchronous method lives in
the event loop of the rollouts, and must not block it.
"""

import asyncio
import base64
import functools
import hashlib
import inspect
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from agentflow_jax import records
from agentflow_jax.agents import memory, own_functions, own_instances
from agentflow_jax.agents.environments import base, episodes, signing
from agentflow_jax.agents.tools import base as tools_base, own_tool

_STATE = b"user's episode"
# Longest wait of a call for an idle process; it is not part of the call's time limit.
_QUEUE_SECONDS = 120.0
# The one check of each task: the number that the class returns.
CHECK = records.Check('verify', 'reward', {})


class _Instance(Protocol):
  """One instance of the class."""

  async def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
    """Carries out a request, see own_instances."""
    ...

  def kept(self) -> bytes | None:
    """Returns the instance as bytes; None where it cannot be kept."""
    ...

  async def close(self) -> None:
    """Releases the instance."""


class OwnEnvironment:
  """Opens episodes of a class.

  The state of a world is {"row": the arguments of `reset`}.

  Args:
    path: path of the file that holds the class.
    name: name of the class, and of the environment.
    seconds: time limit of one call of a method [s], waiting not included.
    concurrency: largest number of concurrent calls of synchronous methods.

  Attributes:
    name: name of the class.
    version: digest of the file.
    capacity: None, for no limit.
    cards: cards of the tools.

  Raises:
    own_functions.LoadError: the class cannot be loaded, or lacks what it needs; says
      what.
  """

  def __init__(self, path: str, name: str, *, seconds: float, concurrency: int):
    self._class = own_functions.load(path, name)
    try:
      self._shape = own_instances.shape_of(self._class, name)
      self.cards = tuple(
        own_tool.card_of(method, key, bound=1)
        for key, method in self._shape.tools.items()
      )
    except ValueError as e:
      raise own_functions.LoadError(f'{path}: {e}') from e
    self.name, self._seconds = name, seconds
    self.capacity: int | None = None
    self._own = None
    self.version = own_functions.digest(path)
    if not self._shape.is_async:
      self._own = own_functions.Own(path, name, 'environment', seconds, concurrency)

  def misfit(self, row: Mapping[str, Any]) -> str:
    """Says why `reset` cannot take the fields of a row; '' where it can."""
    parameters = list(inspect.signature(self._class.reset).parameters.values())[1:]
    named = {
      p.name: p
      for p in parameters
      if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [] if takes_all else [k for k in row if k not in named]
    missing = [
      k
      for k, p in named.items()
      if p.default is p.empty and k not in row and k not in _OFFERED_AT_RESET
    ]
    if unknown:
      return f'{self.name}.reset takes no argument {unknown[0]!r}'
    if missing:
      return f'{self.name}.reset needs {missing[0]!r}, which the row lacks'
    return ''

  def check(self, task: records.Task) -> list[str]:
    """See Environment.check."""
    row = task.its_world.state.get('row')
    why = self.misfit(row) if isinstance(row, dict) else 'its world has no "row"'
    unknown = sorted(set(task.its_world.tools) - self._shape.tools.keys())
    if unknown:
      why = f'{self.name} has no tool {unknown[0]!r}'
    if why:
      raise ValueError(f'task {task.id!r}: {why}')
    return []

  async def open(
    self, task: records.Task, key: records.RequestKey, state: bytes | None = None
  ) -> base.Episode:
    """See Environment.open."""
    instance: _Instance
    if self._own is None:
      instance = _Living(self._class, self._seconds)
    else:
      instance = _Kept(self._own)
    request = {
      'do': 'reset',
      'row': dict(task.its_world.state['row']),
      'offered': {
        'query': task.query,
        'answers': list(task.answers),
        'seed': base.seed_of(task),
      },
    }
    if state is not None:
      # What changed is told from the state that the episode goes on from.
      request = {'do': 'restore', 'state': signing.read(_STATE, state)}
    episode = _Episode(self, task, instance)
    try:
      episode.begin(await self._asked(instance.do(request)))
    except BaseException:  # After a cancellation, too, the instance is closed.
      await episodes.close(instance)
      raise
    return episode

  async def _asked(self, work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the reply to a request; raises Unreachable where the class failed."""
    try:
      return await work
    except (own_functions.Failed, own_functions.TimedOut) as e:
      raise base.Unreachable(str(e)) from e

  async def close(self) -> None:
    """See Environment.close."""
    if self._own is not None:
      await self._own.aclose()


# What `reset` gets beside the row, where it names it.
_OFFERED_AT_RESET = ('query', 'answers', 'seed')


class _Episode:
  """One open episode, see base.Episode."""

  def __init__(self, environment, task, instance):
    self._environment, self._task, self._instance = environment, task, instance
    self.brief, self.outside = base.Brief(), frozenset()
    self.ended: base.Ended = ''
    self.answer: str | None = None
    cards = {card.name: card for card in environment.cards}
    self.tools = {
      name: tools_base.Tool(
        cards[name],
        functools.partial(self._call, name),
        timeout=environment._seconds + _QUEUE_SECONDS,
        version=environment.version,
      )
      for name in task.its_world.tools or cards
    }

  def begin(self, reply: Mapping[str, Any]) -> None:
    """Takes the reply to the first request."""
    policy = '\n\n'.join(
      filter(None, (self._task.world.policy, reply.get('observation', '')))
    )
    self.brief = base.Brief(memory.bounded(policy))
    self._take(reply)

  def _take(self, reply: Mapping[str, Any]) -> None:
    self.ended, self.answer = reply['ended'], reply['answer']

  async def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
    if self.ended:
      raise tools_base.BadArguments('the episode has ended')
    try:
      reply = await self._instance.do(
        {'do': 'call', 'tool': name, 'arguments': dict(arguments)}
      )
    except (own_functions.Failed, own_functions.TimedOut) as e:
      raise tools_base.ToolUnreachable(str(e)) from e
    if 'refused' in reply:
      raise tools_base.BadArguments(f'{name}: {reply["refused"]}')
    self._take(reply)
    return reply['value']

  async def verify(self, ending: records.Ending) -> records.Verdict:
    """See Episode.verify."""
    offered = {
      'answer': ending.answer,
      'ended': ending.ended,
      'calls': [[call.tool, dict(call.arguments)] for call, _ in ending.calls],
    }
    found = await self._environment._asked(
      self._instance.do({'do': 'verify', 'offered': offered})
    )
    results = tuple(
      records.CheckResult(name, 'reward', passed, f'reward {found["reward"]:g}')
      for name, passed in found['checks'].items()
    )
    changed = tuple(memory.bounded(change) for change in found['changed'])
    return records.Verdict(results, changed, reward=found['reward'])

  async def digest(self) -> str:
    """See Episode.digest."""
    kept = self._instance.kept()
    return '' if kept is None else hashlib.sha256(kept).hexdigest()

  def state(self) -> bytes | None:
    """See Episode.state."""
    kept = self._instance.kept()
    return None if kept is None else signing.signed(_STATE, kept)

  async def close(self) -> None:
    """See Episode.close."""
    await self._instance.close()


class _Kept:
  """An instance that is kept as bytes between two calls, see _Instance."""

  def __init__(self, own: own_functions.Own):
    self._own, self._state, self._start = own, '', ''

  async def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
    """See _Instance.do."""
    if request['do'] == 'restore':
      self._state = base64.b64encode(request['state']).decode()
    request = {**request, 'state': self._state, 'start': self._start}
    reply = await self._own(request)
    self._state = reply.pop('state', self._state)
    self._start = self._start or self._state
    return reply

  def kept(self) -> bytes:
    """See _Instance.kept."""
    return base64.b64decode(self._state)

  async def close(self) -> None:
    """See _Instance.close; a method `close` of the class is called."""
    if self._state and hasattr(self._own.function, 'close'):
      await self._own({'do': 'close', 'state': self._state})


class _Living:
  """An instance in the event loop, see _Instance."""

  def __init__(self, found: type, seconds: float):
    self._class, self._seconds = found, seconds
    self._instance, self._start = None, None

  async def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
    """See _Instance.do."""
    limit = asyncio.timeout(self._seconds)
    try:
      async with limit:
        return await getattr(self, f'_{request["do"]}')(request)
    except TimeoutError as e:
      if not limit.expired():
        raise own_functions.Failed(f'{self._class.__name__}: {e}') from e
      raise own_functions.TimedOut(
        f'{self._class.__name__} took longer than {self._seconds:g} s'
      ) from e
    except Exception as e:  # The class is a user's code.
      raise own_functions.Failed(
        f'{self._class.__name__} raised {type(e).__name__}: {e}'
      ) from e

  async def _reset(self, request) -> dict[str, Any]:
    self._instance = self._class()
    arguments = own_instances.accepted(
      self._class.reset, request['row'], request['offered']
    )
    said = await _value(self._instance.reset(**arguments))
    self._start = self.kept()
    return self._left(observation=own_instances.observed(said))

  async def _restore(self, request) -> dict[str, Any]:
    self._instance = own_instances.read(request['state'])
    self._start = request['state']
    return self._left()

  async def _call(self, request) -> dict[str, Any]:
    method = getattr(self._instance, request['tool'])
    try:
      value = await _value(method(**request['arguments']))
    except (tools_base.BadArguments, ValueError) as e:
      return {'refused': str(e)}
    return self._left(value=own_instances.text_of(value))

  async def _verify(self, request) -> dict[str, Any]:
    changed = []
    if self._start is not None and self.kept() is not None:
      changed = own_instances.changes(own_instances.read(self._start), self._instance)
    said = getattr(self._instance, 'reward', None)
    if hasattr(self._class, 'verify'):
      arguments = own_instances.accepted(self._class.verify, {}, request['offered'])
      instance: Any = self._instance
      said = await _value(instance.verify(**arguments))
    reward, found = own_instances.judged(said)
    return {'reward': reward, 'checks': found, 'changed': changed}

  def _left(self, **said: Any) -> dict[str, Any]:
    kind, answer = own_instances.ended(self._instance)
    return {'ended': kind, 'answer': answer, **said}

  def kept(self) -> bytes | None:
    """See _Instance.kept."""
    try:
      return own_instances.bytes_of(self._instance)
    except ValueError:  # It holds a connection, or the like.
      return None

  async def close(self) -> None:
    """See _Instance.close; a method `close` of the class is called."""
    if self._instance is not None and hasattr(self._instance, 'close'):
      await _value(self._instance.close())


async def _value(said: Any) -> Any:
  """Returns what a method returned, also where that has to be awaited."""
  return await said if inspect.isawaitable(said) else said
