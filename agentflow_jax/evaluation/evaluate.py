"""Evaluates an agent on tasks and says what every number rests on."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import judge as judge_lib, modules, recording, rollout
from agentflow_jax.rollouts import collect, evaluated_items, evaluation_files
from agentflow_jax.rollouts import intervals, journal as journal_lib
from agentflow_jax.rollouts import mistakes, totals, waits, world_totals
from agentflow_jax.runtime import processes as processes_lib

# An evaluation has its own randomness: the seed of the run, purpose EVALUATE
# and (item, trial); not the training step, so two evaluations of the same
# parameters give the same answers.
_STEP = 0


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
    return totals.group_means(self.groups)

  @property
  def accuracy(self) -> float:
    """Mean over the scored items; 0 where none was."""
    return _mean(self.scores)

  @property
  def accuracy_over_requested(self) -> float:
    """Mean over all items; a rollout without a reward counts as 0."""
    return totals.mean_over_requested(self.groups)

  def interval(self) -> tuple[float, float]:
    """95% bootstrap interval over items."""
    return _interval(self.scores)

  def file(
    self, more: Mapping[str, Any] | None = None
  ) -> evaluation_files.EvaluationFile:
    """Returns what the file of the evaluation holds.

    Args:
      more: further entries.
    """
    low, high = self.interval()
    rollouts = [(g.task, t) for g in self.groups for t in g.trajectories]
    trajectories = [t for _, t in rollouts]
    count = max(len(trajectories), 1)
    return evaluation_files.EvaluationFile(
      name=self.name,
      split=self.split,
      temperature=self.temperature,
      accuracy=self.accuracy,
      ci_low=low,
      ci_high=high,
      accuracy_over_requested=self.accuracy_over_requested,
      items_requested=len(self.groups),
      items_scored=len(self.scores),
      rollouts_requested=len(trajectories),
      rollouts_scored=sum(t.reward is not None for t in trajectories),
      status=totals.statuses(trajectories),
      by_hops=self._by('hops'),
      by_kind=self._by('kind'),
      tools=totals.tool_calls(trajectories),
      tool_error_rate=totals.tool_error_rate(trajectories),
      tool_counts=totals.tool_counts(trajectories),
      turns_mean=totals.turns(trajectories) / count,
      planner_tokens_mean=totals.response_tokens(trajectories) / count,
      seconds_a_rollout=_mean([waits.total(t) for t in trajectories]),
      seconds=self.seconds,
      mistakes=mistakes.of_groups(self.groups),
      world=world_totals.of_groups(self.groups),
      judged=self._judged(),
      items=tuple(
        evaluated_items.Item.of(task, t, self._verdict(task, t)) for task, t in rollouts
      ),
      more=more or {},
    )

  def _judged(self) -> evaluation_files.Judged | None:
    """The judge's accuracy over what it said something of, beside the rule's."""
    if self.verdicts is None:
      return None
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
          differ.append((group.task.id, trajectory.rollout))
      over_requested.append(sum(found) / max(len(group.trajectories), 1))
      if found:
        scores.append(sum(found) / len(found))
    low, high = _interval(scores)
    return evaluation_files.Judged(
      accuracy=sum(scores) / len(scores) if scores else None,
      accuracy_over_requested=_mean(over_requested),
      ci_low=low,
      ci_high=high,
      items=len(scores),
      unknown=unknown,
      differs_from_rule=tuple(differ),
    )

  def _verdict(self, task, trajectory) -> evaluated_items.OfJudge | None:
    """Returns what a judge said of a rollout; None where none was asked at all."""
    if self.verdicts is None:
      return None
    verdict = self.verdicts.get((task.id, trajectory.rollout))
    if verdict is None:
      return evaluated_items.OfJudge()
    return evaluated_items.OfJudge(verdict.correct, verdict.analysis)

  def _by(self, tag: str) -> dict[str, evaluation_files.Slice]:
    """Accuracies by value of a tag; a value without scored items is left out."""
    found: dict[str, list[records.Group]] = {}
    for group in self.groups:
      if tag in group.task.tags:
        found.setdefault(group.task.tags[tag], []).append(group)
    return {
      value: evaluation_files.Slice(
        items=len(scores),
        accuracy=_mean(scores),
        items_requested=len(groups),
        accuracy_over_requested=totals.mean_over_requested(groups),
      )
      for value, groups in sorted(found.items())
      if (scores := totals.group_means(groups))
    }


def _mean(values: Sequence[float]) -> float:
  """The mean; 0 of nothing."""
  return sum(values) / max(len(values), 1)


def _interval(scores: Sequence[float]) -> tuple[float, float]:
  """A 95% bootstrap interval over items; of none, all that can be."""
  return intervals.bootstrap_interval(scores, seed=0) if scores else (0.0, 1.0)


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
