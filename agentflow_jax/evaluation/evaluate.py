"""Evaluates an agent on tasks and says what every number rests on."""

import asyncio
import collections
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import judge as judge_lib, modules, recording, rollout
from agentflow_jax.files import writing
from agentflow_jax.rollouts import collect, intervals, journal as journal_lib
from agentflow_jax.rollouts import mistakes, totals, world_totals
from agentflow_jax.runtime import processes as processes_lib

# An evaluation has its own randomness: the seed of the run, purpose EVALUATE
# and (item, trial); not the training step, so two evaluations of the same
# parameters give the same answers.
_STEP = 0

DIRECTORY = 'evaluations'  # Of a workdir: a file each.


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evaluation.

  Attributes:
    name: name of what was evaluated.
    split: the split of the tasks.
    temperature: temperature of the planner's sampling.
    groups: a group an item, a rollout a trial.
    seconds: wall time.
    verdicts: (task id, trial) -> what a judge said of a rollout that the rule
      scored; None where none was asked.
  """

  name: str
  split: str
  temperature: float
  groups: tuple[records.Group, ...]
  seconds: float
  verdicts: Mapping[tuple[str, int], judge_lib.Verdict] | None = None

  @property
  def scores(self) -> list[float]:
    """Mean reward an item over its scored trials; without any, no item."""
    scores = []
    for group in self.groups:
      scored = [t.reward for t in group.trajectories if t.reward is not None]
      if scored:
        scores.append(sum(scored) / len(scored))
    return scores

  @property
  def accuracy(self) -> float:
    """Mean over the scored items; 0 where none was."""
    scores = self.scores
    return sum(scores) / len(scores) if scores else 0.0

  @property
  def accuracy_over_requested(self) -> float:
    """Mean over all items; a rollout without a reward counts as 0."""
    return _mean(_mean(t.reward or 0.0 for t in g.trajectories) for g in self.groups)

  def interval(self) -> tuple[float, float]:
    """95% bootstrap interval over items."""
    scores = self.scores
    if not scores:
      return 0.0, 1.0
    return intervals.bootstrap_interval(scores, seed=0)

  def to_json(self) -> dict[str, Any]:
    """The evaluation as report.py reads it."""
    low, high = self.interval()
    trajectories = [t for g in self.groups for t in g.trajectories]
    failed, called = totals.tool_errors(trajectories)
    return {
      'name': self.name,
      'split': self.split,
      'temperature': self.temperature,
      'accuracy': self.accuracy,
      'ci_low': low,
      'ci_high': high,
      'accuracy_over_requested': self.accuracy_over_requested,
      'items_requested': len(self.groups),
      'items_scored': len(self.scores),
      'rollouts_requested': len(trajectories),
      'rollouts_scored': sum(t.reward is not None for t in trajectories),
      'status': dict(collections.Counter(t.status.value for t in trajectories)),
      'by_hops': self._by('hops'),
      'by_kind': self._by('kind'),
      'tools': totals.tool_calls(trajectories),
      'tool_error_rate': failed / max(called, 1),
      'tool_counts': totals.tool_counts(trajectories),
      'turns_mean': _mean(len(t.turns) for t in trajectories),
      'planner_tokens_mean': _mean(
        sum(len(turn.completion.response_ids) for turn in t.turns) for t in trajectories
      ),
      'seconds_a_rollout': _mean(t.seconds.get('total', 0.0) for t in trajectories),
      'seconds': self.seconds,
      'mistakes': mistakes.of_groups(self.groups),
      **self._in_worlds(),
      **self._judged(),
      'items': [
        _item(g.task, t) | self._verdict(g.task, t)
        for g in self.groups
        for t in g.trajectories
      ],
    }

  def _in_worlds(self) -> dict[str, Any]:
    found = world_totals.of_groups(self.groups)
    return {'world': found} if found else {}

  def _judged(self) -> dict[str, Any]:
    """The judge's accuracy over what it said something of, beside the rule's."""
    if self.verdicts is None:
      return {}
    scores, unknown, differ = [], 0, []
    over_requested = []
    for group in self.groups:
      found = []
      for trajectory in group.trajectories:
        verdict = self.verdicts.get((group.task.id, trajectory.rollout))
        if verdict is None:  # The rule had nothing to score either.
          continue
        if verdict.correct is None:
          unknown += 1
          continue
        found.append(float(verdict.correct))
        if verdict.correct != (trajectory.reward == 1.0):
          differ.append([group.task.id, trajectory.rollout])
      over_requested.append(sum(found) / max(len(group.trajectories), 1))
      if found:
        scores.append(sum(found) / len(found))
    low, high = 0.0, 1.0
    if scores:
      low, high = intervals.bootstrap_interval(scores, seed=0)
    return {
      'judge_accuracy': sum(scores) / len(scores) if scores else None,
      'judge_accuracy_over_requested': _mean(over_requested),
      'judge_ci_low': low,
      'judge_ci_high': high,
      'judge_items': len(scores),
      'judge_unknown': unknown,
      'judge_differs_from_rule': differ,
    }

  def _verdict(self, task, trajectory) -> dict[str, Any]:
    if self.verdicts is None:
      return {}
    verdict = self.verdicts.get((task.id, trajectory.rollout))
    return {
      'judge': verdict.correct if verdict else None,
      'judge_analysis': verdict.analysis if verdict else '',
    }

  def _by(self, tag: str) -> dict[str, dict[str, float]]:
    """Accuracies by value of a tag; a value without scored items is left out."""
    found: dict[str, list[records.Group]] = {}
    for group in self.groups:
      if tag in group.task.tags:
        found.setdefault(group.task.tags[tag], []).append(group)
    parts = {
      value: dataclasses.replace(self, groups=tuple(groups))
      for value, groups in sorted(found.items())
    }
    return {
      value: {
        'items': len(part.scores),
        'accuracy': part.accuracy,
        'items_requested': len(part.groups),
        'accuracy_over_requested': part.accuracy_over_requested,
      }
      for value, part in parts.items()
      if part.scores
    }


def _mean(values: Iterable[float]) -> float:
  """The mean; 0 of nothing."""
  found = list(values)
  return sum(found) / max(len(found), 1)


async def evaluate(
  agent: rollout.Agent,
  tasks: Sequence[records.Task],
  *,
  name: str,
  split: str,
  seed: int,
  processes: processes_lib.Processes,
  trials: int = 1,
  greedy: bool = False,
  concurrent: int = 256,
  journal: journal_lib.Journal | None = None,
  on_done: Callable[[records.Trajectory], None] | None = None,
) -> Evaluation:
  """Runs every task `trials` times.

  Args:
    agent: agent that is evaluated.
    tasks: the items.
    name: name of the result.
    split: the split they are of.
    seed: the run's.
    processes: processes that share the work; each of them has to call it.
    trials: rollouts an item; more than one needs sampling.
    greedy: sample at temperature 0 instead of the planner's temperature.
    concurrent: rollouts under way at once.
    journal: journal of the items that are done; None for none.
    on_done: function that is called with every trajectory as it ends.

  Raises:
    ValueError: several greedy trials, which would all be the same.
  """
  if greedy and trials > 1:
    raise ValueError('greedy trials are all the same: set trials to 1')
  temperature = 0.0
  if isinstance(agent.planner, modules.ModelPlanner):
    sampling = agent.planner.sampling
    if greedy:
      sampling = dataclasses.replace(sampling, temperature=0.0)
    temperature = sampling.temperature
    planner = dataclasses.replace(agent.planner, sampling=sampling)
    agent = dataclasses.replace(agent, planner=planner)
  start = time.monotonic()
  with recording.during(f'{name}, temperature {temperature:g}'):
    groups = await collect.groups(
      agent,
      tasks,
      group_size=trials,
      key=records.RequestKey(seed, records.Purpose.EVALUATE, _STEP, '', 0),
      limit=asyncio.Semaphore(concurrent),
      processes=processes,
      journal=journal,
      on_done=on_done,
    )
  seconds = time.monotonic() - start
  return Evaluation(name, split, temperature, tuple(groups), seconds)


async def judge(
  asked: judge_lib.Judge,
  groups: Sequence[records.Group],
  seed: int,
  concurrent: int = 256,
) -> dict[tuple[str, int], judge_lib.Verdict]:
  """Has a judge grade every rollout that was scored; the same answer once.

  Args:
    asked: the judge.
    groups: groups to grade.
    seed: the run's.
    concurrent: answers being graded at once.

  Returns:
    (task id, trial) -> verdict.
  """
  limit = asyncio.Semaphore(concurrent)

  async def one(task, answer, trial):
    key = records.RequestKey(seed, records.Purpose.EVALUATE, _STEP, task.id, trial)
    async with limit:
      return await asked(task, answer, key)

  running: dict[tuple[str, str], asyncio.Task] = {}
  wanted = {}
  async with asyncio.TaskGroup() as group:
    for item in groups:
      for trajectory in item.trajectories:
        if trajectory.reward is None:
          continue
        name = item.task.id, trajectory.answer
        if name not in running:
          running[name] = group.create_task(
            one(item.task, trajectory.answer, trajectory.rollout)
          )
        wanted[item.task.id, trajectory.rollout] = running[name]
  return {name: task.result() for name, task in wanted.items()}


def save(
  directory: epath.Path, evaluation: Evaluation, others: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
  """Writes `<name>.json`, whole or not at all, and returns what it holds.

  Args:
    directory: created where absent.
    evaluation: evaluation to write.
    others: further entries of the file.
  """
  return add(directory, evaluation.to_json(), others or {})


def add(
  directory: epath.Path, value: Mapping[str, Any], others: Mapping[str, Any]
) -> Mapping[str, Any]:
  """Writes the file of an evaluation with further entries, and returns what it holds.

  Args:
    directory: directory of the file, created where absent.
    value: content of the file without them.
    others: further entries.
  """
  value = {**value, **others}
  path = directory / f'{value["name"]}.json'
  writing.write_whole(path, json.dumps(value, indent=1))
  return value


def _item(task: records.Task, trajectory: records.Trajectory):
  return {
    'id': task.id,
    'trial': trajectory.rollout,
    'query': task.query,
    'gold': ' | '.join(task.answers),
    'answer': trajectory.answer,
    'reward': trajectory.reward,
    'status': trajectory.status.value,
    'detail': trajectory.detail,
    'tags': {k: v for k, v in task.tags.items() if k not in ('solution', 'tempting')},
    'turns': [_turn(t) for t in trajectory.turns],
    **mistakes.said(task, trajectory),
  } | _world(trajectory)


def _world(trajectory: records.Trajectory) -> dict[str, Any]:
  """Returns what an item says of the rollout's world; {} without one."""
  verdict = trajectory.verdict
  if verdict is None:
    return {}
  return {
    'checks': [dataclasses.asdict(result) for result in verdict.results],
    'changed': list(verdict.changed),
    'violations': list(verdict.violations),
    'digest': trajectory.digest,
  }


def _turn(turn: records.Turn) -> dict[str, Any]:
  verdicts = [m.output for m in turn.modules if m.module == 'verifier']
  more = [_attempt(*one) for one in turn.more]
  return {
    'planner': turn.completion.text,
    'parse_error': turn.parse_error,
    **_attempt(turn.call, turn.result),
    'verdict': verdicts[-1] if verdicts else '',
  } | ({'more': more} if more else {})


def _attempt(
  call: records.ToolCall | None, result: records.ToolResult | None
) -> dict[str, Any]:
  return {
    'tool': call.tool if call else None,
    'arguments': dict(call.arguments) if call else {},
    'result': result.text[:2000] if result else '',
    'failed': bool(result and result.error),
  }
