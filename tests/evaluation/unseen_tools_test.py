"""The shipped tools of experiments/own_facts.py, in the place of the search.

A planner that reads their cards solves every task of experiments/own_tasks with them,
so that what a trained planner fails of is its own.
"""

import asyncio
import dataclasses
import re

from etils import epath

from agentflow_jax import records
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import loading
from agentflow_jax.evaluation import evaluate as evaluation
from tests.assembly import released
from tests.config import mini

_TOOLS = mini.ROOT / 'experiments' / 'own_facts.py'
_ARTICLES = mini.ROOT / 'experiments' / 'own_tasks' / 'articles'
_PROPERTIES = {  # By the kinds of questions, which stand in the ids of tasks.
  'continent': 'continent',
  'capital': 'capital',
  'money': 'currency',
  'area': 'area',
  'people': 'population',
  'phone': 'calling code',
  'web': 'web domain',
}


def _country_of(task: records.Task) -> str:
  texts = [path.read_text(encoding='utf-8') for path in _ARTICLES.iterdir()]
  names = re.findall(r'^(.+) lies in ', '\n'.join(texts), re.MULTILINE)
  return max((name for name in names if name in task.query), key=len)


def _record(task):
  return f'Sub-Goal: answer {_country_of(task)}\nContext: \nTool Name: country_record'


def _fact(task):
  fields = (
    f'country={_country_of(task)}; property={_PROPERTIES[task.id.partition("/")[2]]}'
  )
  return f'Sub-Goal: answer it\nContext: {fields}\nTool Name: country_fact'


def _as_searched(task):
  return (
    f'Sub-Goal: answer area {_country_of(task)}\nContext: \nTool Name: country_record'
  )


@dataclasses.dataclass
class _Script:
  """A planner that knows the plan of each task."""

  plans: dict[str, str]
  sampling: records.SamplingSpec

  async def plan(self, view):
    return records.Completion(self.plans[view.task_id]), self.sampling


def _played(tmp_path, scripts, **flags):
  """Returns an evaluation of each scripted planner on 30 tasks."""
  config = loading.load(
    str(mini.ROOT / 'experiments' / 'own_tasks.py'),
    list(
      {
        'planner.directory': str(released.write(tmp_path / 'small')),
        'planner.max_prompt_tokens': '480',  # A token is about a byte here.
        'agent.tools.enabled': 'python',
        'agent.tools.corpus': '',
        'task_set.test_items': '30',
        **{name.replace('__', '.'): value for name, value in flags.items()},
      }.items()
    ),
  )
  system = system_lib.build(config, epath.Path(tmp_path / 'out'))
  assert 'search' not in system.agent.tools

  async def played(script):
    tasks = system.tasks.test
    planner = _Script({t.id: script(t) for t in tasks}, config.planner.sampling)
    return await evaluation.evaluate(
      dataclasses.replace(system.agent, planner=planner),
      tasks,
      name='unseen',
      split='test',
      seed=0,
      processes=system.processes,
    )

  async def run():
    try:
      return [await played(script) for script in scripts]
    finally:
      await system.close()

  return asyncio.run(run())


def _rewards(found):
  return [t.reward for group in found.groups for t in group.trajectories]


def test_a_planner_that_names_the_country_alone_solves_every_task(tmp_path):
  right, searched = _played(
    tmp_path,
    [_record, _as_searched],
    agent__tools__own=f'{_TOOLS}:country_record',
    agent__rollout__entry_tokens='200',
  )
  assert _rewards(right) == [1.0] * 30
  # Words for a search are refused, in words.
  assert _rewards(searched) == [0.0] * 30
  for group in searched.groups:
    for trajectory in group.trajectories:
      assert trajectory.status.is_policy
      for turn in trajectory.turns:
        assert turn.result.error is records.ToolErrorKind.ARGUMENTS
        assert "no country is called 'area " in turn.result.text


def test_a_planner_that_writes_both_arguments_solves_every_task(tmp_path):
  (right,) = _played(
    tmp_path,
    [_fact],
    agent__tools__own=f'{_TOOLS}:country_fact',
    agent__executor__backend='fields',
  )
  assert _rewards(right) == [1.0] * 30
