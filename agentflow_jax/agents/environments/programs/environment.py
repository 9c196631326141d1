"""An environment that wraps another one, or none, and runs programs in it.

Its one tool is `code`. The tools of the wrapped episode, and tools without state, are
functions of the program's namespace, which lives on over the turns of a rollout.
`final_answer(x)` ends the rollout, as the tools of the wrapped episode may.
"""

import builtins
import dataclasses
import json
import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import language_model, memory
from agentflow_jax.agents import recording as recording_lib, tool_calls
from agentflow_jax.agents.environments import base, signing
from agentflow_jax.agents.environments.programs import sessions
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.agents.tools.python import python_tool

TOOL = 'code'
FINAL_ANSWER = tools_base.Card(
  'final_answer',
  'Ends the work with the answer.',
  (tools_base.Argument('answer', 'the answer', 'any'),),
)
_PURPOSE = 'Runs a Python program; its names are kept for the next one.'
_STATE = b'code episode'
# A program and its calls have limits of their own, and the rollout's deadline bounds
# the wait for a sandbox, so this one ends only what is broken [s].
_TIMEOUT = 3600.0
_Limits = sessions.Limits  # Below, a field has the name of the module.


@dataclasses.dataclass(frozen=True)
class CodeEnvironment:
  """Opens episodes in which programs act.

  Attributes:
    sessions: sandbox that runs the programs.
    limits: bounds of a session.
    inner: environment whose tools become functions; None for none.
    tools: tools without state, by name, which become functions, too.
    recording: recording of the results of tools without state; None for none.
  """

  sessions: sessions.Sessions
  limits: _Limits
  inner: base.Environment | None = None
  tools: Mapping[str, tools_base.Tool] = dataclasses.field(default_factory=dict)
  recording: recording_lib.Recording | None = None

  @property
  def name(self) -> str:
    """See Environment.name: worlds refer to the environment that is wrapped."""
    return self.inner.name if self.inner is not None else TOOL

  @property
  def version(self) -> str:
    """See Environment.version."""
    inner = self.inner.version if self.inner is not None else ''
    return f'{self.sessions.name} {inner}'.strip()

  @property
  def capacity(self) -> int | None:
    """See Environment.capacity."""
    return self.inner.capacity if self.inner is not None else None

  @property
  def cards(self) -> tuple[tools_base.Card, ...]:
    """See Environment.cards."""
    inner = self.inner.cards if self.inner is not None else ()
    return (self.card([t.card for t in self.tools.values()] + list(inner)),)

  def card(self, functions: Sequence[tools_base.Card]) -> tools_base.Card:
    """Returns the card of the tool `code` beside functions."""
    program = self.limits.program
    return tools_base.Card(
      name=TOOL,
      purpose=_PURPOSE,
      arguments=(tools_base.Argument('code', 'a program'),),
      limits=(
        f'{self.sessions.card_limits}; at most {program.cpu_seconds:g} s of'
        f' processor time, {program.output_bytes} bytes of output and'
        f' {self.limits.calls} calls a program'
      ),
      functions=(*functions, FINAL_ANSWER),
    )

  def check(self, task: records.Task) -> list[str]:
    """See Environment.check."""
    return self.inner.check(task) if self.inner is not None else []

  async def open(
    self, task: records.Task, key: records.RequestKey, state: bytes | None = None
  ) -> base.Episode:
    """See Environment.open."""
    names, answer, inner_state = b'', None, None
    if state is not None:
      names, answer, inner_state = _read(state)
    inner = None
    if self.inner is not None and task.world is not None:
      inner = await self.inner.open(task, key, inner_state)
    return _Episode(self, key, inner, names, answer)

  async def close(self) -> None:
    """See Environment.close."""
    await self.sessions.close()
    for tool in self.tools.values():
      if tool.close is not None:
        await tool.close()
    if self.inner is not None:
      await self.inner.close()


class _Episode:
  """One open episode, see base.Episode."""

  def __init__(self, environment, key, inner, names, answer):
    self._environment, self._inner, self._names = environment, inner, names
    self.answer = answer
    self.brief = inner.brief if inner is not None else base.Brief()
    inner_tools = dict(inner.tools) if inner is not None else {}
    self._functions = {**environment.tools, **inner_tools}
    self._of_world, self.outside = frozenset(inner_tools), frozenset(environment.tools)
    check_functions(self._functions)
    seed = dataclasses.replace(key, turn=0, module=TOOL, attempt=0).words()
    self._start = sessions.Start(
      (*self._functions, FINAL_ANSWER.name),
      f'{seed[0]} {seed[1]}',
      *filter(None, (self.brief.date,)),
    )
    card = environment.card([tool.card for tool in self._functions.values()])
    self.tools = {
      TOOL: tools_base.Tool(card, self._run, _TIMEOUT, version=environment.version)
    }

  @property
  def ended(self) -> base.Ended:
    """See Episode.ended."""
    if self.answer is not None:
      return 'finish'
    return self._inner.ended if self._inner is not None else ''

  async def verify(self, ending: records.Ending) -> records.Verdict:
    """See Episode.verify."""
    if self._inner is None:
      return records.Verdict(())
    return await self._inner.verify(ending)

  async def digest(self) -> str:
    """See Episode.digest."""
    return await self._inner.digest() if self._inner is not None else ''

  def state(self) -> bytes | None:
    """See Episode.state."""
    inner = b''
    if self._inner is not None:
      inner = self._inner.state()
      if inner is None:
        return None
    said = json.dumps([len(self._names), self.answer]).encode()
    return signing.signed(_STATE, said + b'\n' + self._names + inner)

  async def close(self) -> None:
    """See Episode.close."""
    if self._inner is not None:
      await self._inner.close()

  async def _run(self, arguments: Mapping[str, Any]) -> str:
    """Runs a program, and returns the observation."""
    if self.ended:
      raise tools_base.BadArguments('the episode has ended')
    environment = self._environment
    program = python_tool.program_of(arguments['code'], environment.limits.program)
    written: list[str] = []

    async def call(name, positional, named):
      return await self._called(name, positional, named, written)

    outcome = await environment.sessions.run(self._names, program, call, self._start)
    self._names = outcome.state
    if outcome.stopped:
      tools_base.count('programs_stopped')
    if outcome.forgotten:
      tools_base.count('replays_differed')
    said = sessions.observation(outcome, environment.limits, written)
    if outcome.error or outcome.stopped:
      raise tools_base.BadArguments(said)
    return said

  async def _called(self, name, positional, named, written) -> str:
    """Makes a call of a program."""
    if name == FINAL_ANSWER.name:
      call = _bound(FINAL_ANSWER, positional, named)
      answer = call.arguments['answer']
      said = answer if isinstance(answer, str) else json.dumps(answer)
      self.answer = memory.bounded(said)
      raise sessions.Finished
    tool = self._functions[name]
    call = _bound(tool.card, positional, named)
    key = tools_base.request_key.get()
    assert key is not None  # Set for each call of a tool.
    recording = self._environment.recording
    result = await tool_calls.made(
      tool, call, key, None if name in self._of_world else recording
    )
    tools_base.note_call(call, result)
    if result.error is None:
      said = ', '.join(f'{k}={v!r}' for k, v in call.arguments.items())
      written.append(memory.bounded(f'{name}({said})')[:200])
      if self.ended:
        raise sessions.Finished
      return result.text
    if result.error is records.ToolErrorKind.ARGUMENTS:
      raise sessions.CallFailed(result.text)
    if result.error is records.ToolErrorKind.MODEL_UNREACHABLE:
      raise language_model.Unreachable(result.text)
    raise tools_base.ToolUnreachable(result.text)


def check_functions(names: Iterable[str]) -> None:
  """Raises ValueError where programs could not call a tool by its name."""
  taken = {*dir(builtins), FINAL_ANSWER.name}
  for name in names:
    if not name.isidentifier() or keyword.iskeyword(name) or name in taken:
      raise ValueError(
        f'a program cannot call a tool {name!r}: that is no name of a function in'
        ' Python, or one that programs have already; give it another name'
      )


def _bound(
  card: tools_base.Card, positional: Sequence[Any], named: Mapping[str, Any]
) -> records.ToolCall:
  """Returns the call that a program makes, with checked arguments.

  Raises:
    CallFailed: the arguments do not fit the card.
  """
  names = [a.name for a in card.arguments]
  if len(positional) > len(names):
    raise sessions.CallFailed(
      f'{card.name} takes {len(names)} arguments: {", ".join(names)}'
    )
  arguments = {n: sessions.plain(v) for n, v in zip(names, positional)}
  for name, value in named.items():
    if name in arguments:
      raise sessions.CallFailed(f'{card.name}: {name!r} is given twice')
    arguments[name] = sessions.plain(value)
  # An argument that may be left out may be given as None, as in Python.
  optional = {a.name for a in card.arguments if not a.required}
  arguments = {n: v for n, v in arguments.items() if v is not None or n not in optional}
  try:
    checked = tools_base.check_arguments(card, arguments)
  except tools_base.BadArguments as e:
    raise sessions.CallFailed(str(e)) from e
  return records.ToolCall(card.name, checked)


def _read(state: bytes) -> tuple[bytes, str | None, bytes]:
  """Reads what `_Episode.state` wrote.

  Raises:
    ValueError: it is no state of an episode of this process.
  """
  header, _, rest = signing.read(_STATE, state).partition(b'\n')
  size, answer = json.loads(header)
  return rest[:size], answer, rest[size:]
