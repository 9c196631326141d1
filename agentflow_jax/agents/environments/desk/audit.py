"""Says whether the checks of tasks tell right ways from wrong ones.

The right way of a task has to pass all of its checks, other right ways, too, and every
mutant has to fail. A check by which no mutant fails alone would not be needed.
"""

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.desk import actions, mutants
from agentflow_jax.agents.environments.sqlite import environment as environments
from agentflow_jax.agents.tools import base as tools_base


@dataclasses.dataclass(frozen=True)
class Run:
  """What a list of calls came to.

  Attributes:
    verdict: results of the checks.
    digest: digest of the final state; '' where a check failed.
    ended: kind of the end, with the arguments of the call that ended it.
    results: texts and errors of the tools, in order.
    errors: number of calls that were errors.
  """

  verdict: records.Verdict
  digest: str
  ended: tuple[str, str]
  results: tuple[str, ...]
  errors: int


async def run(
  environment: environments.SqliteEnvironment,
  task: records.Task,
  calls: Iterable[records.ToolCall],
) -> Run:
  """Makes calls in a new episode of a task, and its checks.

  Args:
    environment: environment of the task.
    task: task.
    calls: calls in order; those behind the end are left out.
  """
  key = records.RequestKey(0, records.Purpose.EVALUATE, 0, task.id, 0)
  episode = await environment.open(task, key)
  try:
    made = await carried_out(episode, calls)
    ending = ending_of(episode, made)
    said = str(sorted(made[-1][0].arguments.items())) if episode.ended else ''
    verdict = await episode.verify(ending)
    # Where a check fails, state or end are not those of the right way.
    digest = await episode.digest() if verdict.success else ''
    return Run(
      verdict,
      digest,
      (episode.ended, said),
      tuple(result.text for _, result in made),
      sum(result.error is not None for _, result in made),
    )
  finally:
    await episode.close()


async def carried_out(
  episode: base.Episode, calls: Iterable[records.ToolCall]
) -> list[tuple[records.ToolCall, records.ToolResult]]:
  """Makes calls in order, up to the one that ends the episode, and returns them."""
  made = []
  for call in calls:
    if episode.ended:
      break
    made.append((call, await _called(episode, call)))
  return made


def ending_of(
  episode: base.Episode, made: Sequence[tuple[records.ToolCall, records.ToolResult]]
) -> records.Ending:
  """Returns the ending of an episode in which calls were made and no answer given."""
  status = (
    records.Status.REFUSED
    if episode.ended == 'refuse'
    else records.Status.ANSWERED
    if episode.ended
    else records.Status.OUT_OF_TURNS
  )
  return records.Ending(status, '', tuple(made), episode.ended)


async def _called(episode: base.Episode, call: records.ToolCall) -> records.ToolResult:
  tool = episode.tools[call.tool]
  try:
    arguments = tools_base.check_arguments(tool.card, call.arguments)
    return records.ToolResult(await tool.call(arguments))
  except tools_base.BadArguments as e:
    return records.ToolResult(str(e), records.ToolErrorKind.ARGUMENTS)


async def audit(
  environment: environments.SqliteEnvironment, tasks: Sequence[records.Task]
) -> dict[str, Any]:
  """Returns figures on tasks and their checks, all of which `problems` reads.

  Args:
    environment: environment of the tasks.
    tasks: tasks with a solution in their tags, and 'tempting' for the infeasible.
  """
  found = _Findings()
  for task in tasks:
    found.warnings += environment.check(task)
    right = await run(environment, task, mutants.solution_of(task))
    found.add_right(task, right)
    for calls in mutants.other_orders(task):
      other = await run(environment, task, calls)
      found.others.append(other.verdict.success)
      if not other.verdict.success:
        found.failures.append(f'{task.id}: another right way fails')
    count = 0
    for mutant in mutants.of(task, environment.start_of(task.its_world)):
      wrong = await run(environment, task, mutant.calls)
      same = (wrong.digest, wrong.ended) == (right.digest, right.ended)
      found.add_mutant(task, mutant, wrong, same)
      count += not same
    found.mutants_of[task.id] = count
  return found.figures(tasks)


@dataclasses.dataclass
class _Findings:
  """What an audit found so far."""

  warnings: list[str] = dataclasses.field(default_factory=list)
  failures: list[str] = dataclasses.field(default_factory=list)
  passing: list[str] = dataclasses.field(default_factory=list)
  others: list[bool] = dataclasses.field(default_factory=list)
  words: list[int] = dataclasses.field(default_factory=list)
  errors: int = 0
  excluded: int = 0
  operators: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  names: set[str] = dataclasses.field(default_factory=set)
  needed: set[str] = dataclasses.field(default_factory=set)
  mutants_of: dict[str, int] = dataclasses.field(default_factory=dict)

  def add_right(self, task: records.Task, right: Run) -> None:
    """Adds the run of a right way."""
    self.words += [len(text.split()) for text in right.results]
    self.errors += right.errors
    self.names |= {check.name for check in task.its_world.checks}
    if not right.verdict.success:
      failed = [f'{r.name} ({r.detail})' for r in right.verdict.results if not r.passed]
      self.failures.append(f'{task.id}: the right way fails {"; ".join(failed)}')

  def add_mutant(
    self, task: records.Task, mutant: mutants.Mutant, wrong: Run, same: bool
  ) -> None:
    """Adds the run of a mutant; `same` says that it ended as the right way does."""
    if same:
      self.excluded += 1
      return
    self.operators[mutant.operator] += 1
    failed = [r.name for r in wrong.verdict.results if not r.passed]
    if not failed:
      self.passing.append(f'{task.id}: {mutant.operator}: {_shown(mutant.calls)}')
    if len(failed) == 1:
      self.needed.update(failed)

  def figures(self, tasks: Sequence[records.Task]) -> dict[str, Any]:
    """Returns the figures."""
    made = self.operators.total()
    feasible = [t.id for t in tasks if t.its_world.feasible]
    return {
      **of_tasks(tasks),
      'words_of_results': spread(self.words),
      'errors_of_right_ways': self.errors,
      'failures': self.failures,
      'warnings': self.warnings,
      'mutants': made,
      'mutants_excluded': self.excluded / max(1, made + self.excluded),
      'mutants_passing': self.passing,
      'mutants_of_a_feasible_task': spread([self.mutants_of[i] for i in feasible]),
      'operators': dict(sorted(self.operators.items())),
      'checks_not_needed': sorted(self.names - self.needed),
      'other_right_ways': len(self.others),
    }


def of_tasks(tasks: Sequence[records.Task]) -> dict[str, Any]:
  """Returns figures that follow from the tasks alone."""
  infeasible = [t for t in tasks if not t.its_world.feasible]
  rules = collections.Counter(t.tags['rule'] for t in infeasible)
  dependent = [len(mutants.solution_of(t)) - 1 for t in tasks]
  return {
    'tasks': len(tasks),
    'families': _counted(tasks, 'family'),
    'kinds': _counted(tasks, 'kind'),
    'infeasible_share': len(infeasible) / max(1, len(tasks)),
    'rules': dict(sorted(rules.items())),
    'largest_rule_share': max(rules.values(), default=0) / max(1, len(infeasible)),
    'share_of_3_dependent_calls': statistics.fmean(n >= 3 for n in dependent),
    'calls': spread([n + 1 for n in dependent]),
    'words_of_query': spread([len(t.query.split()) for t in tasks]),
    'words_of_policy': spread([len(t.its_world.policy.split()) for t in tasks]),
  }


def problems(figures: Mapping[str, Any]) -> list[str]:
  """Returns what is wrong with audited tasks, in words; none where all is well."""
  found = [*figures['failures'], *figures['warnings'], *figures['mutants_passing']]
  limits = (
    ('mutants_excluded', figures['mutants_excluded'] <= 0.1, 'at most 0.1'),
    ('infeasible_share', 0.25 <= figures['infeasible_share'] <= 0.3, '0.25 to 0.3'),
    ('largest_rule_share', figures['largest_rule_share'] <= 0.2, 'at most 0.2'),
    (
      'share_of_3_dependent_calls',
      figures['share_of_3_dependent_calls'] >= 0.7,
      'at least 0.7',
    ),
    ('errors_of_right_ways', figures['errors_of_right_ways'] == 0, '0'),
    ('checks_not_needed', not figures['checks_not_needed'], 'empty'),
    ('operators', len(figures['operators']) >= 5, 'five or more'),
    (
      'mutants_of_a_feasible_task',
      figures['mutants_of_a_feasible_task']['least'] >= 8,
      'at least 8',
    ),
  )
  found += [
    f'{name} is {figures[name]}, and has to be {wanted}'
    for name, holds, wanted in limits
    if not holds
  ]
  return found


def spread(numbers: Sequence[int]) -> dict[str, float]:
  """Returns the least, the mean and the largest of some numbers."""
  if not numbers:
    return {'least': 0, 'mean': 0.0, 'most': 0}
  return {
    'least': min(numbers),
    'mean': round(statistics.fmean(numbers), 2),
    'most': max(numbers),
  }


def _counted(tasks: Sequence[records.Task], tag: str) -> dict[str, int]:
  return dict(sorted(collections.Counter(t.tags[tag] for t in tasks).items()))


def _shown(calls: Sequence[records.ToolCall]) -> str:
  return ' '.join(
    f'{c.tool}({", ".join(map(str, c.arguments.values()))})'
    for c in calls
    if c.tool not in actions.READS
  )
