"""Where a training step's turn rows come from: live rollouts, or traces."""

import asyncio
import json
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import logging
from etils import epath

from agentflow_jax import records
from agentflow_jax.assembly import chats, scripted_planners
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import loading, schema
from agentflow_jax.core import batch
from agentflow_jax.rollouts import collect, journal as journal_lib
from agentflow_jax.rollouts import mistakes, rollout_files, showing, totals
from agentflow_jax.runtime import exits
from agentflow_jax.training import difficulty, sample_queue, task_order, turn_rows

# Rollouts whose texts and tokens are compared with the tokenizer.
_COMPARED = 8

# Fields of the agent that prompts and responses are written by.
_SAME = ('plan_format', 'number_mentions', 'mention_marks', 'withheld_tools')

OnDone = Callable[[records.Trajectory], None]


@dataclasses.dataclass(frozen=True)
class StepData:
  """What one step trains on.

  Attributes:
    mini_batches: the turn rows of each optimizer update; whole groups.
    metrics: metrics of how they were collected.
    groups: the rollouts that the step sampled, those that are trained on first;
      empty where there were none.
    extras: (place of the group, rollout) -> fields for its record.
    header: fields for the first line of the step's record.
  """

  mini_batches: tuple[tuple[batch.TurnRow, ...], ...]
  metrics: dict[str, float]
  groups: tuple[records.Group, ...] = ()
  extras: Mapping[tuple[int, int], Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  header: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Source(Protocol):
  """Gives a step its data; the same step always the same."""

  async def step(self, step: int, on_done: OnDone) -> StepData:
    """Returns the data of `step` (from 0)."""
    ...


class RolloutSource:
  """Live rollouts of the current planner: Flow-GRPO's data.

  Args:
    system: parts of the run.
    journal: journal of finished rollouts.
    records_of: function from a step that was committed (from 0) to its record, which
      is asked where train.drop_solved, train.drop_hopeless or a queue is set.
    score: function from turn rows to their log probabilities under the parameters
      now, for a queue.
  """

  def __init__(
    self,
    system: system_lib.System,
    journal: journal_lib.Journal,
    records_of: Callable[[int], rollout_files.Recorded] | None = None,
    score: sample_queue.Score | None = None,
  ):
    self._system = system
    self._journal = journal
    self._by_term = system.config.flow_grpo.terms == 'normalised'
    self._records_of = records_of
    self._score = score
    self._queue, self._queued = None, 0
    if system.config.queue.size and system.config.algorithm == 'flow_grpo':
      self._queue = sample_queue.SampleQueue(system.config.queue, self._by_term)
    self._filter, self._noted = None, 0
    train = system.config.train
    if train.drop_solved or train.drop_hopeless:
      count = len(system.tasks.train)
      if train.queries_per_step > count:
        raise schema.ConfigError(
          f'train.queries_per_step={train.queries_per_step}: there are {count}'
          ' tasks, and with train.drop_solved or train.drop_hopeless a step asks'
          ' each at most once'
        )
      self._filter = difficulty.Filter(
        lambda place: self._indices(system.config.seed, place, 1)[0],
        [task.id for task in system.tasks.train],
        train.drop_solved,
        train.drop_hopeless,
      )

  async def step(self, step, on_done):
    config = self._system.config
    train = config.train
    tasks = await self._asked(step)
    found = await self._groups(step, tasks, on_done, before=[])
    for i in range(train.refill_rounds):
      varied = sum(totals.has_variance(g, self._by_term) for g in found)
      missing = train.queries_per_step - varied
      if not missing:
        break
      # A sequence of its own: what later steps ask stays what it would be.
      more = [
        task
        for task in self._refill(step * train.refill_rounds + i)
        if self._filter is None or not self._filter.is_dropped(task.id)
      ][:missing]
      found += await self._groups(step, more, on_done, before=tasks)
      tasks += more
    groups, dropped = _chosen(found, train.queries_per_step, self._by_term)
    reused = []
    if self._queue is not None:
      groups, dropped, reused = await self._with_queue(step, groups, dropped)
    mini_batches, extras = (), {}
    if config.algorithm != 'none':
      mini_batches, extras = _rows_of(
        groups,
        [one for one, _ in reused],
        config.flow_grpo,
        train.queries_per_step // train.mini_batches,
      )
    metrics = totals.of_step(found, self._by_term)
    metrics['groups/dropped'] = len(dropped)
    header = {}
    if self._queue is not None:
      extras = sample_queue.checksums(groups, extras)
      self._queue.use([one for one, _ in reused])
      self._queue.admit(step, groups, extras)
      self._queued = step + 1
      header = {sample_queue.FIELD: self._queue.content()}
      metrics |= self._queue.metrics(reused, step, train.group_size)
    if self._filter is not None:
      self._filter.note((*groups, *dropped))
      self._noted = step + 1
      metrics |= self._filter.metrics()
    return StepData(
      mini_batches=mini_batches,
      metrics=metrics,
      groups=(*groups, *dropped),
      extras=extras,
      header=header,
    )

  async def _with_queue(self, step, groups, dropped):
    """Puts groups of the queue in the place of groups without variance.

    Returns:
      The groups of this step that are trained on, those that are not, and pairs of a
      queued group and its gap. Queued groups come last, so that the first update
      checks as many fresh groups as there are.
    """
    config, queue = self._system.config, self._queue
    assert queue is not None
    # Both are given with a queue, and the score is asked only where it has groups.
    recorded: Any = self._records_of
    score: Any = self._score
    if self._queued != step:  # Of a run that goes on.
      await asyncio.to_thread(queue.restore, step, recorded)
    queue.begin(step)
    size = config.train.queries_per_step // config.train.mini_batches
    count = min(
      sum(not totals.has_variance(g, self._by_term) for g in groups),
      int(config.queue.share * config.train.queries_per_step),
    )

    def rows_of(one):
      return turn_rows.flow_grpo_rows(
        [one.group], config.flow_grpo, {0: one.advantages}
      ).rows

    taken = await asyncio.to_thread(queue.take, count, rows_of, score, size)
    kept, replaced = _chosen(groups, len(groups) - len(taken), self._by_term)
    if not any(_has_target(group) for group in kept[:size]):
      return groups, dropped, []
    return kept, [*replaced, *dropped], taken

  def _refill(self, step) -> list[records.Task]:
    seed = f'{self._system.config.seed} refill'
    tasks = self._tasks(seed, step)
    if self._system.tasks.mixture:
      # Only the first are asked: were it always the same places of the sources'
      # turns, one source would get more than its weight.
      start = random.Random(f'{seed}/{step}').randrange(len(tasks))
      tasks = tasks[start:] + tasks[:start]
    return tasks

  async def _asked(self, step) -> list[records.Task]:
    """Returns the tasks of a step, without those that were dropped before it."""
    config, tasks = self._system.config, self._system.tasks.train
    count = config.train.queries_per_step
    if self._filter is None:
      return self._tasks(config.seed, step)
    try:
      for earlier in range(self._noted, step):  # Of a run that goes on.
        self._filter.next(count)
        assert self._records_of is not None  # Given with a filter.
        recorded = await asyncio.to_thread(self._records_of, earlier)
        self._filter.note(recorded.groups)
      self._noted = step
      return [tasks[i] for i in self._filter.next(count)]
    except difficulty.AllDropped:
      raise exits.RunStopped(
        f'step {step + 1} asks train.queries_per_step={count} tasks, and fewer are'
        ' left, because the others are solved or hopeless. Everything is committed.'
        f' To evaluate what was learned, go on with --config.train.steps={step};'
        ' other values of train.drop_solved and train.drop_hopeless need another'
        ' --workdir'
      ) from None

  def _tasks(self, seed, step) -> list[records.Task]:
    count = self._system.config.train.queries_per_step
    tasks = self._system.tasks.train
    return [tasks[i] for i in self._indices(seed, step, count)]

  def _indices(self, seed, step, count) -> list[int]:
    tasks, mixture = self._system.tasks.train, self._system.tasks.mixture
    if mixture:
      return task_order.mixture_indices(mixture, seed, step, count)
    return task_order.epoch_indices(len(tasks), seed, step, count)

  async def _groups(self, step, tasks, on_done, before):
    config = self._system.config
    return await collect.groups(
      self._system.trained_agent,
      tasks,
      group_size=config.train.group_size,
      extra=config.train.extra_rollouts,
      key=records.RequestKey(config.seed, records.Purpose.TRAIN, step, '', 0),
      limit=asyncio.Semaphore(config.train.concurrent_rollouts),
      processes=self._system.processes,
      journal=self._journal,
      on_done=on_done,
      before=before,
    )


def learned(
  system: system_lib.System, directory: epath.Path
) -> list[records.Group] | None:
  """Returns the chats or the recorded rollouts that algorithm=sft learns from.

  Args:
    system: system with the planner that learns.
    directory: work directory, where a run that goes on has it already.

  Returns:
    Groups of one chat or one successful rollout each; None where the run plays
    scripted rollouts itself, goes on from a commit, or has another algorithm.

  Raises:
    ConfigError: the chats or the rollouts cannot be learned from.
  """
  config = system.config
  if config.algorithm != 'sft' or config.sft.is_scripted or _traces(directory).exists():
    return None
  return _successes(system) if config.sft.rollouts else _chats(system)


def _traces(directory: epath.Path) -> epath.Path:
  """Returns the path of what a run of algorithm=sft learns from."""
  return directory / 'traces.jsonl.zst'


class TraceSource:
  """Turns of a scripted planner, collected once: the warm start's data.

  Args:
    system: system that plays them.
    directory: work directory.
    groups: groups that are learned from instead, see `learned`; None for scripted
      rollouts, and where the work directory has them.
  """

  def __init__(
    self,
    system: system_lib.System,
    directory: epath.Path,
    groups: list[records.Group] | None = None,
  ):
    self._system, self._path, self._learned = system, _traces(directory), groups
    self._rollouts: Sequence[Sequence[records.Turn]] | None = None

  async def step(self, step, on_done):
    config = self._system.config
    if self._rollouts is None:
      self._rollouts = await self._collect(on_done)
    turns = [turn for rollout in self._rollouts for turn in rollout]
    if not turns:
      raise schema.ConfigError(
        'there is no turn to learn from: every rollout ended before its first plan, as'
        ' with a prompt above planner.max_prompt_tokens'
      )
    # Nothing below waits: without this, a request to stop would not be noticed.
    await self._system.processes.gathered(_nothing())
    pool: Sequence[Sequence[records.Turn]] = [[turn] for turn in turns]
    count = config.sft.rows_per_step
    if config.sft.rollouts_per_step:
      pool, count = self._rollouts, config.sft.rollouts_per_step
    drawn = [
      turn
      for i in task_order.epoch_indices(len(pool), config.seed, step, count)
      for turn in pool[i]
    ]
    rows = turn_rows.sft_rows(drawn, config.sft.prompt_weight)
    metrics: dict[str, float] = {'sft/turns': len(turns), 'sft/rows': len(rows)}
    return StepData(mini_batches=(rows,), metrics=metrics)

  async def _collect(self, on_done):
    """Runs the scripted planner through the live loop, real tools included."""
    config = self._system.config
    if self._path.exists():
      groups = rollout_files.read(self._path)
    elif self._learned is not None:
      groups = self._learned
      if self._system.processes.is_primary:
        await asyncio.to_thread(rollout_files.write, self._path, groups)
    else:
      tasks, script = self._system.tasks.train, scripted_planners.demonstrated
      if config.task_set.has_solutions:
        script = scripted_planners.make_teacher(config.teacher)
      else:
        tasks = [task for task in tasks if 'plans' in task.tags]
      tasks = tasks[: config.sft.traces]
      logging.info('collecting %d traces to learn from', len(tasks))
      groups = await collect.groups(
        self._system.with_script(script),
        tasks,
        group_size=1,
        key=records.RequestKey(config.seed, records.Purpose.SFT, 0, '', 0),
        limit=asyncio.Semaphore(config.train.concurrent_rollouts),
        processes=self._system.processes,
        on_done=on_done,
      )
      if self._system.processes.is_primary:
        await asyncio.to_thread(rollout_files.write, self._path, groups)
    if not config.task_set.has_solutions and config.sft.is_scripted:
      return [_demonstrated(group) for group in groups]
    return [t.turns for g in groups for t in g.trajectories]


def _chats(system: system_lib.System) -> list[records.Group]:
  """Returns the chats of the file `sft.chats`, a group of one rollout each.

  Args:
    system: system with the planner that learns from them.

  Raises:
    ConfigError: there is no such file, a row is no chat, no answer fits in a row, or
      a chat has more answers than a batch of whole rollouts has room for.
  """
  config, tokenizer = system.config, system.model.tokenizer
  field = f'sft.chats={config.sft.chats}'
  found = chats.read(config.sft.chats, tokenizer, config.batch.tokens_per_row)
  if found.too_long or not found.turns:
    if not found.answers:
      raise schema.ConfigError(f'{field}: no message of an assistant to learn from')
    said = (
      f'{field}: {found.too_long} of {found.answers} answers do not fit in a row,'
      f' because the longest has {found.longest} tokens with its conversation; raise'
      f' batch.tokens_per_row={config.batch.tokens_per_row}'
    )
    if not found.turns:
      raise schema.ConfigError(f'{said}. There is nothing to learn from')
    logging.warning('%s to learn from them', said)
  most, limit = max(map(len, found.turns)), config.agent.rollout.max_turns
  if config.sft.rollouts_per_step and most > limit:
    raise schema.ConfigError(
      f'{field}: a chat has {most} answers, and a batch of whole rollouts'
      f' (sft.rollouts_per_step) has room for agent.rollout.max_turns={limit} of each;'
      ' raise that, or set sft.rollouts_per_step=0'
    )
  logging.info(
    'learning from %d answers of %d chats',
    found.answers - found.too_long,
    len(found.turns),
  )
  return [
    records.Group(
      records.Task(f'chat/{i}', '(a chat of sft.chats)', (), 'sft'),
      (records.Trajectory(f'chat/{i}', 0, records.Status.ANSWERED, turns),),
    )
    for i, turns in enumerate(found.turns)
  ]


def _successes(system: system_lib.System) -> list[records.Group]:
  """Returns the successful rollouts of the run `sft.rollouts`, by task, in their order.

  Args:
    system: system with the planner that learns from them.

  Raises:
    ConfigError: there are no rollouts, none succeeded, their tokens are those of
      another tokenizer, or the run showed its planner something else.
  """
  workdir = system.config.sft.rollouts
  groups, count, tokenizer = [], 0, system.model.tokenizer
  _check_same_prompts(workdir, system.config)
  try:
    for _, task, trajectory in showing.find(
      epath.Path(workdir), showing.Wanted(step=0)
    ):
      count += 1
      if mistakes.is_success(trajectory):
        groups.append(records.Group(task, (trajectory,)))
  except rollout_files.RecordError as e:
    raise schema.ConfigError(f'sft.rollouts={workdir}: {e}') from e
  if not groups:
    raise schema.ConfigError(
      f'sft.rollouts={workdir}: none of {count} rollouts succeeded, so there is'
      ' nothing to learn from'
    )
  for completion in (
    turn.completion
    for group in groups[:_COMPARED]
    for turn in group.trajectories[0].turns
  ):
    ids = completion.response_ids
    # Rows that other programs wrote may lack the text.
    same = max(ids, default=0) < tokenizer.vocab_size and (
      completion.text in ('', tokenizer.decode(ids))
    )
    if not same:
      raise schema.ConfigError(
        f'sft.rollouts={workdir}: its rollouts were sampled with another tokenizer:'
        ' set planner.directory to the planner that sampled them'
      )
  logging.info('learning from %d successes of %d rollouts', len(groups), count)
  return groups


def _check_same_prompts(workdir: str, config: schema.Config) -> None:
  """Raises ConfigError where a run's planner saw or wrote another form of things."""
  path = epath.Path(workdir) / 'config.json'
  if not path.exists():  # Rollouts of no run of ours.
    return
  other = loading.load(str(path))
  for name in _SAME:
    theirs, ours = (getattr(c.agent, name) for c in (other, config))
    if theirs != ours:
      raise schema.ConfigError(
        f'sft.rollouts={workdir}: there agent.{name} is {theirs!r}, here {ours!r},'
        ' so its prompts and responses are not those of this run; set it as there'
      )


async def _nothing() -> bytes:
  return b''


def _demonstrated(group: records.Group) -> list[records.Turn]:
  """Returns the turns that a row demonstrates.

  If the verifier did not stop after the last plan, the rollout repeated that plan;
  those turns are left out.

  Raises:
    ConfigError: a plan cannot be carried out; names the task.
  """
  count = len(json.loads(group.task.tags['plans']))
  turns = [turn for t in group.trajectories for turn in t.turns[:count]]
  for turn in turns:
    if turn.parse_error:
      raise schema.ConfigError(
        f'task_set.train: a plan of the task {group.task.id!r} cannot be carried'
        f' out: {turn.parse_error}'
      )
  return turns


def _rows_of(
  groups: Sequence[records.Group],
  reused: Sequence[sample_queue.Queued],
  config: schema.FlowGrpoConfig,
  size: int,
) -> tuple[
  tuple[tuple[batch.TurnRow, ...], ...], dict[tuple[int, int], Mapping[str, Any]]
]:
  """Returns the turn rows of each optimizer update of a step, and fields for records.

  Args:
    groups: groups that the step sampled.
    reused: groups of earlier steps, which come last.
    config: weighting and advantage.
    size: number of groups of an update.

  Returns:
    The rows, and (place of the group, rollout) -> fields of the rollout's record, for
    what the step sampled.
  """
  everything = [*groups, *(one.group for one in reused)]
  frozen = {len(groups) + i: one.advantages for i, one in enumerate(reused)}
  mini_batches, extras = [], {}
  for start in range(0, len(everything), size):
    part = turn_rows.flow_grpo_rows(
      everything[start : start + size],
      config,
      {p - start: a for p, a in frozen.items() if start <= p < start + size},
    )
    mini_batches.append(part.rows)
    extras |= {
      (start + place, i): extra
      for (place, i), extra in part.extras.items()
      if start + place < len(groups)
    }
  return tuple(mini_batches), extras


def _has_target(group: records.Group) -> bool:
  """Says whether the loss has a target of a group."""
  return any(
    turn.completion.response_ids
    for t in group.trajectories
    if t.reward is not None
    for turn in t.turns
  )


def _chosen(
  groups: Sequence[records.Group], count: int, by_term: bool
) -> tuple[list[records.Group], list[records.Group]]:
  """Returns what is trained on, and the rest: the last ones without variance."""
  idle = [i for i, g in enumerate(groups) if not totals.has_variance(g, by_term)]
  dropped = idle[len(idle) - (len(groups) - count) :]
  return (
    [g for i, g in enumerate(groups) if i not in dropped],
    [groups[i] for i in dropped],
  )
