"""Loads a user's own functions from their files, and calls them with a time limit.

These functions are trusted code, like a config. An asynchronous function runs in the
event loop of the rollouts and must not block it. A synchronous function runs in a
child process, which is killed when a call exceeds the time limit.
"""

import asyncio
import hashlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from agentflow_jax import records
from agentflow_jax.agents import child, own_instances
from agentflow_jax.agents.tools import base

_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'own_worker.py')


class LoadError(Exception):
  """A file, or a name in it, cannot be used; the message says why."""


class Refused(Exception):
  """The function refused its arguments; the message is shown to the model."""


class Failed(Exception):
  """The function raised an error, or its process ended."""


class TimedOut(Exception):
  """The call exceeded the time limit."""


def load(path: str, name: str) -> Any:
  """Runs a Python file and returns the object that it calls `name`.

  A file is run once; it is run again only after its content has changed.

  Args:
    path: path of the file, which is trusted code.
    name: name of a function, a class or an object in it.

  Raises:
    LoadError: there is no such file or name, or running the file fails.
  """
  try:
    known = digest(path)
  except OSError as e:
    raise LoadError(f'{path}: {e.strerror or e}') from e
  stem = os.path.splitext(os.path.basename(path))[0]
  module_name = f'agentflow_own_{stem}_{known[:16]}'
  module = sys.modules.get(module_name)
  if module is None:
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
      raise LoadError(f'{path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Dataclasses look their module up there.
    try:
      spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:  # The file is a user's code.
      del sys.modules[module_name]
      raise LoadError(f'{path} cannot be loaded: {type(e).__name__}: {e}') from e
  if not hasattr(module, name):
    raise LoadError(f'{path} has no {name!r}')
  return getattr(module, name)


def forget(path: str) -> None:
  """Lets the next `load` run a file again, with nothing left of what it made."""
  stem = os.path.splitext(os.path.basename(path))[0]
  sys.modules.pop(f'agentflow_own_{stem}_{digest(path)[:16]}', None)


def digest(path: str) -> str:
  """Returns the SHA-256 of a file's content, in hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def caller(
  function: Callable[..., Any], kind: str
) -> Callable[[Mapping[str, Any]], Any]:
  """Returns a function that takes the arguments of a request as one mapping.

  Args:
    function: function that a user wrote.
    kind: kind of the function: a 'tool' takes named arguments, a 'reward' takes a
      task and an answer, and an 'environment' is a class, which takes requests (see
      own_instances).
  """
  if kind == 'environment':
    return own_instances.caller(cast(type, function))
  if kind == 'tool':
    return lambda arguments: function(**arguments)

  def score(arguments):
    task = dict(arguments['task'])
    task['answers'] = tuple(task['answers'])
    return function(records.Task(**task), arguments['answer'])

  return score


def result_of(value: Any, kind: str) -> Any:
  """Returns a function's result as a value of JSON; raises what is wrong with it."""
  if kind == 'environment':
    return value
  return own_instances.text_of(value) if kind == 'tool' else reward_of(value)


def reward_of(value: Any) -> float | dict[str, float]:
  """Returns a reward, or its parts by name, as Python floats.

  Raises:
    ValueError: the value is neither a number nor a mapping of named numbers, or a
      number is not finite.
  """
  if isinstance(value, Mapping):
    if not value or not all(isinstance(name, str) and name for name in value):
      raise ValueError(f'the parts of a reward need names: {value!r}')
    return {name: _finite(part) for name, part in value.items()}
  return _finite(value)


def _finite(value: Any) -> float:
  try:
    number = math.nan if isinstance(value, str) else float(value)
  except (TypeError, ValueError, OverflowError) as e:
    raise ValueError(f'the reward is no number: {value!r}') from e
  if not math.isfinite(number):
    raise ValueError(f'the reward is {value!r}, not a finite number')
  return number


class Own:
  """A user's function, called with a time limit.

  Use it from one event loop and await `aclose` at the end.

  Args:
    path: path of the file that holds the function.
    name: name of the function.
    kind: 'tool', 'reward' or 'environment', as in `caller`.
    seconds: time limit of one call [s], waiting for a process not included.
    processes: number of calls of a synchronous function at a time.

  Attributes:
    function: the function.
    version: digest of its file.

  Raises:
    LoadError: the function cannot be loaded, the name is not a function, or a
      limit is not positive.
  """

  def __init__(self, path: str, name: str, kind: str, seconds: float, processes: int):
    if seconds <= 0 or processes < 1:
      raise LoadError(
        f'{path}: the time limit and the number of calls at a time must be'
        f' positive: {seconds}, {processes}'
      )
    self.function, self.version = load(path, name), digest(path)
    if kind != 'environment' and not inspect.isroutine(self.function):
      raise LoadError(f'{path}: {name} is no function')
    is_async = inspect.iscoroutinefunction(self.function)
    if inspect.iscoroutinefunction(inspect.unwrap(self.function)) != is_async:
      raise LoadError(
        f'{path}: a decorator hides that {name} is asynchronous: make what it'
        ' returns an `async def`, too'
      )
    self._name, self._kind, self._seconds = name, kind, seconds
    self._call = caller(self.function, kind)
    self._children = None
    if not is_async:
      self._children = child.Pool(
        child.Program(
          _WORKER,
          (os.path.abspath(path), name, kind, self.version),
          dict(os.environ),
          os.getcwd(),
        ),
        # A function may have side effects, so no call is repeated. The limit
        # of `_limited` is reached before this one.
        child.Limits(wall_seconds=2 * seconds + 60, attempts=1),
        processes,
      )

  async def __call__(self, arguments: Mapping[str, Any]) -> Any:
    """Returns the function's result: a tool's text, a reward or its parts, or a reply.

    Args:
      arguments: JSON values, as `caller` takes them.

    Raises:
      Refused: a tool raised ValueError or BadArguments.
      Failed: anything else was raised, or the function's process ended.
      TimedOut: the function took longer than `seconds`.
      language_model.Unreachable: its process does not start.
    """
    if self._children is None:
      return await self._limited(self._awaited(arguments))
    async with self._children.lease() as one:
      await one.start()
      try:
        reply = await self._limited(one.ask({'arguments': dict(arguments)}))
      except child.Broken as e:
        raise Failed(f'{self._name}: its process ended: {e}') from e
    if 'refused' in reply:
      raise Refused(reply['refused'])
    if 'failed' in reply:
      raise Failed(f'{self._name} raised {reply["failed"]}')
    return reply['value']

  async def _awaited(self, arguments: Mapping[str, Any]) -> Any:
    try:
      value = await self._call(arguments)
    except Exception as e:  # The function is a user's code.
      if self._kind == 'tool' and isinstance(e, (base.BadArguments, ValueError)):
        raise Refused(str(e)) from e
      raise Failed(f'{self._name} raised {type(e).__name__}: {e}') from e
    try:
      return result_of(value, self._kind)
    except Exception as e:  # An invalid result is the function's mistake.
      raise Failed(f'{self._name} raised {type(e).__name__}: {e}') from e

  async def _limited(self, work: Awaitable[Any]) -> Any:
    limit = asyncio.timeout(self._seconds)
    try:
      async with limit:
        return await work
    except TimeoutError as e:
      if not limit.expired():
        raise
      raise TimedOut(f'{self._name} took longer than {self._seconds:g} s') from e

  async def aclose(self) -> None:
    """Ends the processes."""
    if self._children is not None:
      await self._children.aclose()
