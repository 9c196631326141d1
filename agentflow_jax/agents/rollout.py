"""One rollout: the live multi-turn loop, ending in exactly one named status."""

import asyncio
import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from absl import logging

from agentflow_jax import records
from agentflow_jax.agents import call_text, calling, cancelling, fitting
from agentflow_jax.agents import language_model, memory as memory_lib
from agentflow_jax.agents import modules
from agentflow_jax.agents import plan as plan_lib
from agentflow_jax.agents import recording as recording_lib
from agentflow_jax.agents import served_session, tool_calls
from agentflow_jax.agents.environments import base as environments, episodes
from agentflow_jax.agents.tools import base

Status = records.Status
_DETAIL_CHARACTERS = 500
# Shorter queries stand in pages that know nothing of them.
_SHORTEST_QUOTE = 40
_WORD = re.compile(r'\w+')
# What the end of the world decides the reward of. The others break the format or the
# time limit: their reward is 0, whatever the world looks like.
_JUDGED = frozenset(
  {Status.ANSWERED, Status.REFUSED, Status.OUT_OF_TURNS, Status.TOOL_ERROR}
)


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Limits of a rollout.

  Attributes:
    max_turns: largest number of planner turns.
    deadline_seconds: time limit of the whole rollout, tools and waits included [s].
    entry_tokens: token budget of one memory entry's result (contract 6).
    verdict_tokens: token budget of a verifier's words in memory.
    answer_when_out_of_turns: whether the generator still answers when no turns are
      left.
    verify_seconds: time limit of the checks of a world after a rollout, which is no
      part of the deadline [s].
  """

  max_turns: int = 3
  deadline_seconds: float = 600.0
  entry_tokens: int = 512
  verdict_tokens: int = 64
  answer_when_out_of_turns: bool = True
  verify_seconds: float = 60.0

  def __post_init__(self):
    for name in (
      'max_turns',
      'deadline_seconds',
      'entry_tokens',
      'verdict_tokens',
      'verify_seconds',
    ):
      if getattr(self, name) <= 0:
        raise ValueError(f'{name} must be positive: {getattr(self, name)}')


@dataclasses.dataclass(frozen=True)
class Agent:
  """The modules, tools and limits that rollouts run with.

  Attributes:
    planner, executor, verifier, generator: the four modules.
    tools: tools without state, by name. In a world the tools of the rollout's
      episode follow them.
    reward: function from a task, its ending, and the verdict on its world (None
      without one) to a number, or to a score of named terms; raises Unreachable.
    count_tokens: tokens of a text, for memory budgets.
    config: the limits.
    analyst: writes the query analysis; None for none.
    start_memory: function that makes the memory which a rollout begins with.
    recording: recording of tools' results, made or replayed; None for neither.
    on_step: function that is called with the name of a module or tool and what it said,
      as soon as it has (to show it).
    environment: opens an episode for each rollout: the world of its task, or one in
      which programs act; None for neither.
    forfeit: score of a rollout that the reward is not asked about, because it broke
      the format or its time limit; None for a reward of 0 without terms.
    plan_format: form of the planner's responses: 'fields', 'code' for a thought and a
      program (see agents.plan), or 'tool_calls' for one model that calls the tools
      itself and answers (see agents.calling), without the other modules.
    unknown_tool: consequence of a plan that names no existing tool: 'end' ends the
      rollout as unparseable, 'tell' puts an error into memory and goes on.
    host: host of the sessions in which an agent that is not ours works
      (agent.kind=served), in the place of the modules and tools; None for our own.
    plant: function from a task and the tools of its rollout to the tools instead, for
      evaluations with planted texts (see agents.injection); None for the tools as they
      are.
    at_work: context of a rollout, which tells the engine of the planner that requests
      may come.
  """

  planner: modules.Planner
  executor: modules.Executor
  verifier: modules.Verifier
  generator: modules.Generator
  tools: Mapping[str, base.Tool]
  reward: Callable[
    [records.Task, records.Ending, records.Verdict | None],
    Awaitable[float | records.Score],
  ]
  count_tokens: Callable[[str], int]
  config: RolloutConfig = RolloutConfig()
  analyst: modules.ModelAnalyst | modules.OracleAnalyst | None = None
  start_memory: memory_lib.Start = memory_lib.start
  recording: recording_lib.Recording | None = None
  on_step: Callable[[str, str], None] | None = None
  environment: environments.Environment | None = None
  forfeit: records.Score | None = None
  plan_format: Literal['fields', 'code', 'tool_calls'] = 'fields'
  unknown_tool: Literal['end', 'tell'] = 'end'
  plant: (
    Callable[[records.Task, Mapping[str, base.Tool]], Mapping[str, base.Tool]] | None
  ) = None
  host: served_session.Host | None = None
  at_work: Callable[[], contextlib.AbstractContextManager[None]] = (
    contextlib.nullcontext
  )

  @property
  def cards(self) -> tuple[base.Card, ...]:
    return tuple(t.card for t in self.tools.values())

  def show(self, name: str, text: str) -> None:
    """Tells `on_step`, if there is one."""
    if self.on_step is not None:
      self.on_step(name, text)


class _End(Exception):
  """Ends a rollout with a status and a detail for people."""

  def __init__(self, status: Status, detail: str = ''):
    super().__init__(detail)
    self.status = status
    self.detail = detail


@dataclasses.dataclass
class _Progress:
  """What is kept of a rollout even when its deadline cuts it off."""

  turns: list[records.Turn] = dataclasses.field(default_factory=list)
  undelivered: tuple[records.Turn, ...] = ()
  posted: float | None = None  # Reward that a driver posted.
  note: str = ''  # What people should know where the deadline passes.
  answer: str = ''
  modules: tuple[records.ModuleCall, ...] = ()
  score: records.Score | None = None
  episode: environments.Episode | None = None
  verdict: records.Verdict | None = None
  digest: str = ''
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  # Time of the planner's sampling, and of calls whose arguments set the time.
  policy_seconds: float = 0.0
  ends_at: float = float('inf')  # on time.monotonic's clock

  @property
  def ended(self) -> environments.Ended:
    """How the episode of the rollout's world ended; '' without one."""
    return self.episode.ended if self.episode is not None else ''

  def ending(self, status: Status) -> records.Ending:
    """Returns what checks and rewards read of the rollout."""
    calls = tuple(pair for turn in self.turns for pair in turn.calls)
    return records.Ending(status, self.answer, calls, self.ended, tuple(self.turns))

  def check_deadline(self) -> None:
    """Ends a rollout whose module or tool swallowed the cancellation."""
    if time.monotonic() > self.ends_at:
      raise TimeoutError

  @contextlib.contextmanager
  def timed(self, what: str, policy: bool = False):
    """Adds the time of its body to `what`, also when it is cancelled."""
    start = time.monotonic()
    try:
      yield
    finally:
      elapsed = time.monotonic() - start
      self.seconds[what] = self.seconds.get(what, 0.0) + elapsed
      if policy:
        self.policy_seconds += elapsed

  @contextlib.contextmanager
  def sampling(self):
    """Adds the time that models sample in the body to the policy's time."""
    with language_model.sampling_time() as spent:
      try:
        yield
      finally:
        self.policy_seconds += spent.seconds


async def rollout(
  agent: Agent, task: records.Task, key: records.RequestKey, analysis: str = ''
) -> records.Trajectory:
  """Runs one rollout to its end, whatever happens on the way.

  Args:
    agent: modules, tools and limits.
    task: task of the rollout; the modules see its query and id only.
    key: key of the rollout; each request adds its turn and module.
    analysis: the group's shared query analysis.

  Returns:
    The trajectory, with exactly one status. Its reward is None exactly when the
    status is an infrastructure one.
  """
  start = time.monotonic()
  progress = _Progress(ends_at=start + agent.config.deadline_seconds)
  try:
    with agent.at_work():
      status, detail, reward = await _ended(agent, task, key, analysis, progress, start)
    if task.world is not None and progress.episode is not None and status.is_policy:
      status, detail, reward = await _verified(
        agent, task, key, progress, (status, detail, reward)
      )
  finally:
    if progress.episode is not None:
      await episodes.close(progress.episode)
  progress.seconds['total'] = time.monotonic() - start
  return records.Trajectory(
    task_id=task.id,
    rollout=key.rollout,
    status=status,
    turns=tuple(progress.turns),
    analysis=analysis,
    answer=progress.answer,
    modules=progress.modules,
    reward=reward,
    score=(progress.score or agent.forfeit) if reward is not None else None,
    detail=memory_lib.bounded(detail)[:_DETAIL_CHARACTERS],
    seconds=dict(progress.seconds),
    verdict=progress.verdict,
    digest=progress.digest,
    briefing=_briefing(task, progress),
    undelivered=progress.undelivered,
  )


def _briefing(task, progress) -> str:
  """Returns what the environment said at the start besides the task's policy."""
  if progress.episode is None or task.world is None:
    return ''
  said = progress.episode.brief.policy
  return '' if said == task.world.policy else said


async def _ended(
  agent, task, key, analysis, progress, start
) -> tuple[Status, str, float | None]:
  """Runs a rollout until it ends or its deadline passes.

  Returns:
    The status, its detail, and the reward. The reward of a rollout in a world is 0
    until its checks are made.
  """
  try:
    async with asyncio.timeout(agent.config.deadline_seconds):
      agent, brief = await _entered(agent, task, key, progress)
      status, detail = await _run(agent, task, key, analysis, brief, progress)
      reward = 0.0
      if task.world is None:
        reward = await _score(agent, task, status, key, progress)
      return status, detail, reward
  except TimeoutError:
    # The side that spent more of the deadline answers for it. The policy's time
    # is measured: the planner's own sampling, and calls whose arguments set the
    # time. All other time is the host's: frozen modules, endpoints, queues, and
    # what is not measured, such as a wait for the processor.
    elapsed = time.monotonic() - start
    waited = progress.policy_seconds <= elapsed / 2
    status = Status.DEADLINE_INFRASTRUCTURE if waited else Status.DEADLINE
    detail = (
      f'the deadline of {agent.config.deadline_seconds} s passed;'
      f' {progress.policy_seconds:.2f} of {elapsed:.2f} s went into the'
      " planner's sampling and into calls whose arguments set the time"
      f'{progress.note}'
    )
    return status, detail, None if waited else 0.0
  except _End as end:
    return end.status, end.detail, 0.0 if end.status.is_policy else None
  except recording_lib.Miss:
    raise  # No fault of this rollout: what is replayed is another run.
  except Exception as e:  # Our own bug, or text that no tokenizer takes.
    logging.exception('rollout %d of %s failed', key.rollout, task.id)
    detail = f'the rollout raised {type(e).__name__}: {e}'
    return Status.MODULE_FAILED, detail, None


async def _entered(agent, task, key, progress) -> tuple[Agent, environments.Brief]:
  """Opens the episode of a rollout; returns the agent with its tools, and its brief."""
  if agent.environment is None:
    if agent.plant is not None:
      agent = dataclasses.replace(agent, tools=agent.plant(task, agent.tools))
    return agent, environments.Brief()
  with progress.timed('environment/open'):
    try:
      episode = await episodes.opened(agent.environment, task, key)
    except environments.Unreachable as e:
      raise _End(Status.ENVIRONMENT_UNREACHABLE, str(e)) from e
  progress.episode = episode
  taken = agent.tools.keys() & episode.tools.keys()
  if taken:
    raise ValueError(f'{agent.environment.name} has a tool {min(taken)!r}, too')
  tools = {**agent.tools, **episode.tools}
  if agent.plant is not None:
    tools = agent.plant(task, tools)
  return dataclasses.replace(agent, tools=tools), episode.brief


async def _verified(
  agent, task, key, progress, ended
) -> tuple[Status, str, float | None]:
  """Makes the checks of a world, and scores the rollout by them.

  Args:
    agent, task, key, progress: arguments and progress of the rollout.
    ended: status, detail and reward of the rollout before the checks.

  Returns:
    The same after the checks. Where the reward does not depend on them, a failure
    to make them changes nothing.
  """
  status, detail, _ = ended
  try:
    with progress.timed('environment/verify'):
      progress.verdict, progress.digest = await episodes.verified(
        agent.environment.name,
        progress.episode,
        progress.ending(status),
        agent.config.verify_seconds,
      )
    if status not in _JUDGED:
      return ended
    async with asyncio.timeout(agent.config.verify_seconds):
      return status, detail, await _score(agent, task, status, key, progress)
  except _End as end:
    return end.status, end.detail, 0.0 if end.status.is_policy else None
  except TimeoutError:
    detail = f'the reward took longer than {agent.config.verify_seconds:g} s'
    return Status.REWARD_UNREACHABLE, detail, None
  except environments.Unreachable as e:
    if status not in _JUDGED:
      logging.warning('task %s: %s', task.id, e)
      return ended
    of_judge = isinstance(e, environments.JudgeUnreachable)
    failed = Status.REWARD_UNREACHABLE if of_judge else Status.ENVIRONMENT_UNREACHABLE
    return failed, str(e), None


async def analyse(
  agent: Agent, task: records.Task, key: records.RequestKey
) -> tuple[str, records.Trajectory | None]:
  """Writes a query's analysis, to share over its group.

  Returns:
    The analysis ('' without an analyst), and None; or '' and the trajectory
    that each rollout of the group ends with, because the analyst failed.
  """
  if agent.analyst is None:
    return '', None
  if isinstance(agent.analyst, modules.OracleAnalyst):
    return memory_lib.bounded(task.world.plan if task.world else ''), None
  progress = _Progress()
  try:
    async with asyncio.timeout(agent.config.deadline_seconds):
      # An analyst sees the tools of the world, which only an episode knows.
      agent, brief = await _entered(agent, task, key, progress)
    memory = agent.start_memory(task.query, '', brief)
    view = modules.View(task.id, memory, agent.cards, key)
    with _module('analyst', progress):
      async with asyncio.timeout(agent.config.deadline_seconds):
        analyst: Any = agent.analyst  # Not the oracle, see above.
        analysis = await analyst.analyse(view)
    return memory_lib.bounded(analysis), None
  except TimeoutError:
    end = _End(Status.ENVIRONMENT_UNREACHABLE, 'the world did not open in time')
    return _not_analysed(task, end, progress)
  except _End as end:
    return _not_analysed(task, end, progress)
  finally:
    if progress.episode is not None:
      await episodes.close(progress.episode)


def _not_analysed(task, end, progress) -> tuple[str, records.Trajectory]:
  """Returns the trajectory that each rollout of the group ends with."""
  return '', records.Trajectory(
    task_id=task.id,
    rollout=0,
    status=end.status,
    turns=(),
    reward=0.0 if end.status.is_policy else None,
    detail=f'analysis: {end.detail}',
    seconds=progress.seconds | {'total': sum(progress.seconds.values())},
  )


async def _run(agent, task, key, analysis, brief, progress) -> tuple[Status, str]:
  """Runs turns until the rollout is stopped or the budget ends, and the answer."""
  if agent.host is not None:
    return await _host(agent, task, key, progress)
  memory = agent.start_memory(task.query, analysis, brief)
  if agent.plan_format == 'tool_calls':
    stopped = await _converse(agent, task, key, memory, progress)
  else:
    stopped = await _work(agent, task, key, memory, progress)
  if stopped:
    refused = progress.ended == 'refuse'
    return Status.REFUSED if refused else Status.ANSWERED, ''
  results = progress.turns[-1].results
  if results and results[-1].error is records.ToolErrorKind.ARGUMENTS:
    return Status.TOOL_ERROR, results[-1].text
  return Status.OUT_OF_TURNS, ''


async def _host(agent, task, key, progress) -> tuple[Status, str]:
  """Offers a session to an agent that is not ours, until that ends it."""
  limits = served_session.Limits(
    agent.config.max_turns,
    agent.planner.max_prompt_tokens,
    agent.config.deadline_seconds,
  )
  start = time.monotonic()
  async with agent.host.opened(task, key, agent.planner.sampling, limits) as session:
    try:
      outcome = await session.outcome()
    finally:
      session.close()
      progress.turns[:] = session.turns
      progress.undelivered = session.undelivered
      if session.waits_for_driver:
        progress.note = '; no driver took the task'
      progress.modules = session.frozen_calls
      waited = session.waiting_seconds
      progress.seconds |= {
        'planner': waited,
        'agent': time.monotonic() - start - waited,
      }
      # Requests side by side take their time together.
      progress.policy_seconds += min(session.sampling_seconds, waited)
  status, detail = session.status
  if outcome.failure:
    raise _End(status, detail)
  progress.answer, progress.posted = outcome.answer, outcome.reward
  agent.show('agent', outcome.answer)
  return status, detail


async def _converse(agent, task, key, memory, progress) -> bool:
  """Turns of one model that calls tools; returns whether it, or the world, ended."""
  messages: calling.Messages = ()
  for turn in range(agent.config.max_turns):
    view = modules.View(
      task.id,
      memory,
      agent.cards,
      dataclasses.replace(key, turn=turn),
      messages=messages,
    )
    completion = await _speak(agent, view, progress)
    said = call_text.read(completion.text, completion.thinking)
    if said.calls or said.problems:
      messages += await _call_all(agent, view, said, progress)
    progress.check_deadline()
    if progress.ended or not (said.calls or said.problems):
      ended_by = progress.episode.answer if progress.ended else None
      progress.answer = said.answer if ended_by is None else ended_by
      return True
  return False


async def _call_all(agent, view, said, progress) -> calling.Messages:
  """Makes the calls of a response, in order, until one ends the world's episode."""
  attempts: list[tuple[records.ToolCall | None, records.ToolResult | None]] = []

  def keep(call, result=None):
    attempts.append((call, result))
    (first, of_first), *more = attempts
    progress.turns[-1] = dataclasses.replace(
      progress.turns[-1], call=first, result=of_first, more=tuple(more)
    )

  for i, call in enumerate(said.calls):
    if call.tool not in agent.tools:
      text = f'unknown tool {call.tool!r:.80}; the tools are {sorted(agent.tools)}'
      keep(None, _refusal(text, 'unknown_tool'))
    else:
      keep(call)  # At once: the call may be what ends the rollout.
      key = dataclasses.replace(view.key, attempt=i)
      call, result = await _checked_call(agent, call, key, view.memory, progress)
      attempts.pop()
      keep(call, result)
    known, result = attempts[-1]
    assert result is not None
    agent.show(known.tool if known else 'tool', result.text)
    progress.check_deadline()
    if progress.ended:
      return ()  # The conversation is over.
  for problem in said.problems:
    keep(None, _refusal(problem, 'malformed_call'))
  return calling.turn(
    said,
    [result for _, result in attempts if result is not None],
    lambda text: memory_lib.shorten(
      text, agent.count_tokens, agent.config.entry_tokens
    ),
  )


def _refusal(text: str, kind: str) -> records.ToolResult:
  """Returns the result of what is no call that can be made."""
  return records.ToolResult(
    memory_lib.bounded(text), records.ToolErrorKind.ARGUMENTS, counts={kind: 1}
  )


async def _work(agent, task, key, memory, progress) -> bool:
  """Turns of the four modules, and the answer; returns whether a turn was the last."""
  stopped = False
  for turn in range(agent.config.max_turns):
    turn_key = dataclasses.replace(key, turn=turn)
    memory, stopped = await _turn(agent, task, turn_key, memory, progress)
    progress.check_deadline()
    if stopped:
      break
  said = progress.episode.answer if stopped and progress.episode else None
  if said is not None:
    progress.answer = said
  elif stopped or agent.config.answer_when_out_of_turns:
    view = modules.View(task.id, memory, agent.cards, turn_key)
    start = time.monotonic()
    with _module('generator', progress), modules.noting_prompts() as asked:
      answer = await agent.generator.answer(view)
      if not isinstance(answer, str):
        raise TypeError(f'{type(answer).__name__} is no text')
      progress.answer = answer
    agent.show('generator', progress.answer)
    progress.modules = (
      records.ModuleCall(
        'generator',
        progress.answer,
        time.monotonic() - start,
        tuple(asked),
        view.counts['shortened/generator'],
      ),
    )
  return stopped


async def _speak(agent, view, progress) -> records.Completion:
  """Asks the planner; its turn is kept from the moment it has spoken."""
  with _module('planner', progress), progress.sampling():
    completion, sampling = await agent.planner.plan(view)
  progress.turns.append(
    records.Turn(completion, sampling, shortened=view.counts['shortened'])
  )
  agent.show('planner', completion.text)
  if completion.finish_reason == 'length':
    raise _End(
      Status.TRUNCATED_RESPONSE,
      f'the response reached {sampling.max_new_tokens} tokens',
    )
  return completion


async def _turn(agent, task, key, memory, progress) -> tuple[memory_lib.Memory, bool]:
  """One turn of the four modules."""
  view = modules.View(task.id, memory, agent.cards, key)
  completion = await _speak(agent, view, progress)
  turn = progress.turns[-1]
  try:
    plan = _read(agent, completion)
  except plan_lib.PlanError as e:
    progress.turns[-1] = dataclasses.replace(turn, parse_error=str(e))
    raise _End(Status.UNPARSEABLE_PLAN, str(e)) from e
  call, said, result = await _execute(agent, view, plan, progress)
  agent.show(plan.tool if call else 'executor', result.text)
  calls = _worth_keeping(said)
  progress.turns[-1] = turn = dataclasses.replace(
    turn, call=call, result=result, modules=calls
  )
  count = agent.count_tokens
  entry, memory = memory.entry(plan, result, count, agent.config.entry_tokens)
  if progress.ended:  # There is nothing left to judge.
    memory = memory.append(entry)
    progress.turns[-1] = dataclasses.replace(
      turn, memory=entry.render(len(memory.entries))
    )
    return memory, True
  start = time.monotonic()
  with _module('verifier', progress), modules.noting_prompts() as asked:
    stop, verdict = await agent.verifier.judge(
      dataclasses.replace(view, memory=memory), plan, entry
    )
  agent.show('verifier', verdict)
  said = records.ModuleCall(
    'verifier',
    verdict,
    time.monotonic() - start,
    tuple(asked),
    view.counts['shortened/verifier'],
  )
  memory = memory.judged(entry, verdict, count, agent.config.verdict_tokens)
  progress.turns[-1] = dataclasses.replace(
    turn, modules=calls + (said,), memory=memory.entries[-1].render(len(memory.entries))
  )
  return memory, stop


def _read(agent, completion) -> plan_lib.Plan:
  """Reads a planner's response; raises PlanError."""
  if agent.plan_format == 'code':
    return plan_lib.parse_code(
      completion.text, next(iter(agent.tools)), completion.thinking
    )
  return plan_lib.parse(
    completion.text,
    tuple(agent.tools),
    completion.thinking,
    any_tool=agent.unknown_tool == 'tell',
  )


async def _execute(agent, view, plan, progress):
  """Makes the plan's call and runs it.

  Returns:
    The call (None where none could be made), what the executor said, and the
    tool's result; an error that the arguments caused is a result, too.
  """
  said, asked = records.ModuleCall('executor', ''), ()
  if plan.problem:
    kind = records.ToolErrorKind.ARGUMENTS
    return (
      None,
      said,
      records.ToolResult(plan.problem, kind, counts={'unknown_tool': 1}),
    )
  tool = agent.tools[plan.tool]
  start = time.monotonic()
  call = None
  try:
    plain = view.memory.plain_plan(plan)
    with _module('executor', progress), modules.noting_prompts() as asked:
      call, output = await agent.executor.command(view, plain, tool.card)
    said = records.ModuleCall(
      'executor',
      output,
      time.monotonic() - start,
      tuple(asked),
      view.counts['shortened/executor'],
    )
    # Kept at once: the call may be what ends the rollout.
    progress.turns[-1] = dataclasses.replace(
      progress.turns[-1], call=call, modules=_worth_keeping(said)
    )
    agent.show('executor', f'{call.tool} {dict(call.arguments)}')
  except base.BadArguments as e:
    said = dataclasses.replace(
      said, prompts=tuple(asked), shortened=view.counts['shortened/executor']
    )
    return None, said, _noting_quotes(_bad_arguments(e, start), view.memory)
  call, result = await _checked_call(agent, call, view.key, view.memory, progress)
  return call, said, result


async def _checked_call(
  agent, call, key, memory, progress
) -> tuple[records.ToolCall, records.ToolResult]:
  """Makes a call if its arguments fit the tool's card.

  Returns:
    The call, with arguments in the types of the card where they fit, and the result;
    an error that the arguments caused is a result, too.
  """
  tool, start = agent.tools[call.tool], time.monotonic()
  try:
    checked = base.check_arguments(tool.card, call.arguments)
    call = dataclasses.replace(call, arguments=checked)
    result = await _call(agent, tool, call, key, progress)
  except base.BadArguments as e:
    result = _bad_arguments(e, start)
  return call, _noting_quotes(result, memory)


def _bad_arguments(error: Exception, start: float) -> records.ToolResult:
  """Returns the result of a call, begun at `start`, that its arguments spoilt."""
  return records.ToolResult(
    memory_lib.bounded(str(error)),
    records.ToolErrorKind.ARGUMENTS,
    time.monotonic() - start,
  )


def _noting_quotes(result, memory) -> records.ToolResult:
  """Counts a result that holds the whole query."""
  texts = [result.text, *(made.text for _, made in result.inner)]
  query = memory.plain().query
  if not any(_quotes(text, query) for text in texts):
    return result
  counts = {**result.counts, 'quotes_query': 1}
  return dataclasses.replace(result, counts=counts)


def _quotes(text: str, query: str) -> bool:
  """Says whether a result holds the whole query: perhaps a benchmark's page."""
  plain = ' '.join(_WORD.findall(query.casefold()))
  return len(plain) >= _SHORTEST_QUOTE and plain in ' '.join(
    _WORD.findall(text.casefold())
  )


def _worth_keeping(said: records.ModuleCall) -> tuple[records.ModuleCall, ...]:
  """A rule's executor says nothing beside the call itself."""
  return (said,) if said.output or said.prompts else ()


async def _call(agent, tool, call, key, progress) -> records.ToolResult:
  """Calls a tool, or finds the call in a recording.

  What a host causes ends the rollout.
  """
  name = tool.card.name
  # A world's tools are not recorded: replaying an answer would repeat no write.
  of_world = progress.episode is not None and name in progress.episode.tools
  with progress.timed(f'tool/{name}', tool.arguments_set_time):
    result = await tool_calls.made(
      tool, call, key, None if of_world else agent.recording
    )
  if result.error is records.ToolErrorKind.UNREACHABLE:
    if result.inner and result.inner[-1][1].error is result.error:
      episode = progress.episode
      of_world = episode is None or result.inner[-1][0].tool not in episode.outside
    # After a call that failed halfway the state of a world is not known.
    unreachable = (
      Status.ENVIRONMENT_UNREACHABLE if of_world else (Status.TOOL_UNREACHABLE)
    )
    raise _End(unreachable, result.text)
  if result.error is records.ToolErrorKind.MODEL_UNREACHABLE:
    raise _End(Status.MODEL_UNREACHABLE, result.text)
  return result


async def _score(agent, task, status, key, progress) -> float:
  """The outcome reward of a rollout that ended on its own."""
  if progress.posted is not None:
    return progress.posted
  answered = status is Status.ANSWERED or (
    agent.config.answer_when_out_of_turns and progress.answer
  )
  if not answered and task.world is None:
    return 0.0
  token = base.request_key.set(dataclasses.replace(key, module='reward'))
  try:
    with _module('reward', progress):
      ending = progress.ending(status)
      reward = await agent.reward(task, ending, progress.verdict)
      if isinstance(reward, records.Score):
        progress.score, reward = reward, reward.reward
      if not math.isfinite(reward):
        progress.score = None
        raise ValueError(f'the reward is {reward}')
      return float(reward)
  except _End as end:
    if end.status is Status.MODEL_UNREACHABLE:
      raise _End(Status.REWARD_UNREACHABLE, end.detail) from end
    raise
  finally:
    base.request_key.reset(token)


@contextlib.contextmanager
def _module(name: str, progress: _Progress):
  """Times a module, and turns what it raises into a status."""
  with progress.timed(name):
    try:
      yield
    except language_model.PromptTooLong as e:
      # The planner answers for its own prompt, and for what its turns put into
      # the prompt of a frozen module. The config answers for the rest of a
      # frozen module's prompt.
      is_policy = name == 'planner' or isinstance(e, fitting.PlannerTooLong)
      status = Status.PROMPT_TOO_LONG if is_policy else Status.MODULE_FAILED
      raise _End(status, f'{name}: {e}') from e
    except language_model.Unreachable as e:
      raise _End(Status.MODEL_UNREACHABLE, f'{name}: {e}') from e
    except recording_lib.Miss:
      raise
    except (Exception, asyncio.CancelledError) as e:
      # The boundary: a module's bug, one rollout lost.
      cancelling.raise_if_cancelled(e)
      if isinstance(e, base.BadArguments) and name == 'executor':
        raise
      detail = f'{name} raised {type(e).__name__}: {e}'
      raise _End(Status.MODULE_FAILED, detail) from e
