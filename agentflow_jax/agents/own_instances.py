"""A user's own environment class: what it has to look like, and one call of it.

An instance lives between two calls as the bytes that pickle makes of it, so any process
can make the next call, and a process that is killed takes no other rollout along.
"""

import base64
import dataclasses
import inspect
import json
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from agentflow_jax.agents.tools import base

# Methods that are no tools.
_RESERVED = ('reset', 'verify', 'close')
_LONGEST_TEXT = 1 << 20
_LONGEST_STATE = 1 << 24
_SHOWN = 100
_ENDS = {True: 'environment', 'finish': 'finish', 'refuse': 'refuse'}


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a class offers.

  Attributes:
    tools: public methods that become tools, by name, in the order of their definition.
    is_async: whether any method is a coroutine function.
    verifies: whether the class has a method `verify`; otherwise its instances have an
      attribute `reward`.
  """

  tools: Mapping[str, Callable[..., Any]]
  is_async: bool
  verifies: bool


def shape_of(found: Any, name: str) -> Shape:
  """Returns the shape of a class.

  Raises:
    ValueError: it is no class, has no method `reset` or no tool, cannot be made without
      arguments, or nothing says how a rollout ended.
  """
  if not inspect.isclass(found):
    raise ValueError(f'{name} is no class')
  methods = {
    key: getattr(found, key)
    for part in reversed(found.__mro__[:-1])
    for key in vars(part)
    if inspect.isfunction(getattr(found, key, None))
  }
  for key, method in methods.items():
    if isinstance(inspect.getattr_static(found, key), staticmethod):
      raise ValueError(f'{name}.{key} is a static method: give it the instance, self')
    hidden = inspect.iscoroutinefunction(inspect.unwrap(method))
    if hidden != inspect.iscoroutinefunction(method):
      raise ValueError(
        f'a decorator hides that {name}.{key} is asynchronous: make what it returns'
        ' an `async def`, too'
      )
  if 'reset' not in methods:
    raise ValueError(f'{name} needs a method reset(**row), which begins an episode')
  tools = {
    key: method
    for key, method in methods.items()
    if not key.startswith('_') and key not in _RESERVED
  }
  if not tools:
    raise ValueError(f'{name} needs a public method beside {", ".join(_RESERVED)}')
  needed = [
    p.name
    for p in inspect.signature(found).parameters.values()
    if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
  ]
  if needed:
    raise ValueError(
      f'{name} is made without arguments, and __init__ needs {needed[0]!r}: take it'
      ' in reset'
    )
  verifies = 'verify' in methods
  return Shape(tools, any(map(inspect.iscoroutinefunction, methods.values())), verifies)


def accepted(
  method: Callable[..., Any], row: Mapping[str, Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the arguments that a method is called with.

  Args:
    method: function, whose first parameter is the instance.
    row: arguments that it has to take.
    offered: arguments that it gets only where it names them.
  """
  named = list(inspect.signature(method).parameters)[1:]
  return dict(row) | {k: v for k, v in offered.items() if k in named and k not in row}


def reset(found: type, request: Mapping[str, Any]) -> dict[str, Any]:
  """Makes an instance and begins an episode of it.

  Args:
    found: class.
    request: "row", the fields of a task, and "offered", what `reset` gets besides
      where it names it.

  Returns:
    "state", "observation" (text, '' for none), and "ended" and "answer" as in
    `call`.
  """
  instance = found()
  arguments = accepted(found.reset, request['row'], request['offered'])
  return _left(instance, observation=observed(instance.reset(**arguments)))


def call(found: type, request: Mapping[str, Any]) -> dict[str, Any]:
  """Calls a tool of an instance.

  Args:
    found: class.
    request: "state", "tool" and "arguments".

  Returns:
    "refused", a text for the model, where the method raised ValueError; otherwise
    "state", "value" (text), "ended" (see base.Ended) and "answer" (text or None).
  """
  del found  # The state knows its class.
  instance = _read(request['state'])
  try:
    value = getattr(instance, request['tool'])(**request['arguments'])
  except (base.BadArguments, ValueError) as e:
    return {'refused': str(e)}
  if inspect.isawaitable(value):
    raise TypeError(f'{request["tool"]} returned an awaitable: name an `async def`')
  return _left(instance, value=text_of(value)[:_LONGEST_TEXT])


def verify(found: type, request: Mapping[str, Any]) -> dict[str, Any]:
  """Says how an episode ended; the instance that it looks at is a copy.

  Args:
    found: class.
    request: "state", "start" (the state after `reset`), and "offered", what `verify`
      gets where it names it.

  Returns:
    "reward", "checks" and "changed", see `judged` and `changes`.
  """
  start, instance = _read(request['start']), _read(request['state'])
  # Before `verify` runs, which may change what it looks at.
  changed = changes(start, instance)
  if hasattr(found, 'verify'):
    said = instance.verify(**accepted(found.verify, {}, request['offered']))
  else:
    said = getattr(instance, 'reward', None)
  reward, checks = judged(said)
  return {'reward': reward, 'checks': checks, 'changed': changed}


def restore(found: type, request: Mapping[str, Any]) -> dict[str, Any]:
  """Goes on from a state: returns what `call` does, without a value.

  Args:
    found: class.
    request: "state".
  """
  del found  # The state knows its class.
  return _left(_read(request['state']))


def close(found: type, request: Mapping[str, Any]) -> dict[str, Any]:
  """Calls the method `close` of an instance: returns {}.

  Args:
    found: class.
    request: "state".
  """
  del found  # The state knows its class.
  _read(request['state']).close()
  return {}


_DO = {
  'reset': reset,
  'call': call,
  'verify': verify,
  'restore': restore,
  'close': close,
}


def caller(found: type) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns a function that carries out a request; "do" says which."""

  def act(request: Mapping[str, Any]) -> dict[str, Any]:
    return _DO[request['do']](found, request)

  return act


def text_of(value: Any) -> str:
  """Returns a tool's result as text; a result that is no text becomes JSON."""
  if isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False, default=str)


def observed(said: Any) -> str:
  """Returns what `reset` said, as text.

  Raises:
    TypeError: it is neither a text nor None.
  """
  if not isinstance(said, (str, type(None))):
    raise TypeError(f'reset returned {type(said).__name__}, not a text or None')
  return (said or '')[:_LONGEST_TEXT]


def judged(said: Any) -> tuple[float, dict[str, bool]]:
  """Reads what `verify` returned, or the attribute `reward`.

  Returns:
    The reward, and the checks by name. True or False is one check and a reward of 1 or
    0. A number is the reward, and one check that it is at least 1. Of a mapping each
    entry is a check, and the reward is 1 where all pass.

  Raises:
    ValueError: it is none of these, or the number is not finite.
  """
  if isinstance(said, Mapping):
    if not said or not all(
      isinstance(k, str) and isinstance(v, bool) for k, v in said.items()
    ):
      raise ValueError(f'checks need names and True or False: {said!r}')
    return float(all(said.values())), dict(said)
  if isinstance(said, str) or said is None:
    raise ValueError(f'verify, or the attribute reward, is {said!r}, not a number')
  number = float(said)
  if not math.isfinite(number):
    raise ValueError(f'the reward is {said!r}, not a finite number')
  return number, {'verify': number >= 1.0}


def changes(start: Any, end: Any) -> list[str]:
  """Returns the attributes that differ, in words, sorted."""
  # Both as they are kept: what a class leaves out, or makes anew, is no change.
  before, after = _attributes(start), _attributes(end)
  found = []
  for name in sorted(before.keys() | after.keys()):
    shown = [_shown(x[name]) if name in x else 'missing' for x in (before, after)]
    if (
      name not in before
      or name not in after
      or (_kept(before[name]) != _kept(after[name]))
    ):
      found.append(f'{name}: {shown[0]} -> {shown[1]}')
  return found


def _attributes(instance: Any) -> dict[str, Any]:
  """Returns the attributes that an instance has after it was kept and read again."""
  found = getattr(read(bytes_of(instance)), '__dict__', {})
  return {k: v for k, v in found.items() if _kept(v) is not None}


def _kept(value: Any) -> bytes | None:
  """Returns a value as bytes; None where it cannot be kept."""
  try:
    return pickle.dumps(value)
  except Exception:  # An attribute's own code may raise anything here.
    return None


def _shown(value: Any) -> str:
  text = ' '.join(repr(value).split())
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def ended(instance: Any) -> tuple[str, str | None]:
  """Returns how an episode ended, '' while it goes on, and the answer that ended it.

  Raises:
    ValueError: the attribute `done` is neither a bool, 'finish' nor 'refuse'.
  """
  done = getattr(instance, 'done', False)
  if not done:
    return '', None
  if done not in _ENDS:
    raise ValueError(f"done is {done!r}: set True, 'finish' or 'refuse'")
  answer = getattr(instance, 'answer', None)
  return _ENDS[done], answer[:_LONGEST_TEXT] if isinstance(answer, str) else None


def bytes_of(instance: Any) -> bytes:
  """Returns an instance as bytes.

  Raises:
    ValueError: an attribute cannot be kept between calls, or it is too large.
  """
  try:
    said = pickle.dumps(instance)
  except Exception as e:  # An attribute's own code may raise anything here.
    attributes = getattr(instance, '__dict__', {})
    name = next((k for k, v in attributes.items() if _kept(v) is None), 'an attribute')
    raise ValueError(
      f'{name} cannot be kept between two calls ({type(e).__name__}: {e}): make it'
      ' where it is used, leave it out in __getstate__, or write the methods as'
      ' `async def`, so that instances live in the process of the run'
    ) from e
  if len(said) > _LONGEST_STATE:
    raise ValueError(
      f'an instance takes {len(said):,} bytes between two calls; at most'
      f' {_LONGEST_STATE:,} are kept'
    )
  return said


def read(state: bytes) -> Any:
  """Returns the instance that `bytes_of` wrote in a process of the same run."""
  return pickle.loads(state)


def _read(state: str) -> Any:
  return read(base64.b64decode(state))


def _left(instance: Any, **said: Any) -> dict[str, Any]:
  """Returns what is left of a call."""
  kind, answer = ended(instance)
  state = base64.b64encode(bytes_of(instance)).decode()
  return {'state': state, 'ended': kind, 'answer': answer, **said}
