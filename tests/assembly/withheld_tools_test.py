"""Training without some tools: what needs them is left out, the rest lacks them."""

import json

import pytest

from agentflow_jax.assembly import task_sets, withheld_tools
from agentflow_jax.config import schema
from tests.agents.environments import toy_world


def _task(name, *tools, tempting=(), **fields):
  task = toy_world.task(task_id=name, **fields)
  for tag, used in (('solution', tools), ('tempting', tempting)):
    task.tags[tag] = json.dumps([{'tool': t, 'arguments': {}} for t in used])
  return task


def _set():
  tasks = (
    _task('a', 'find', 'move', 'finish'),
    _task('b', 'find', 'sell', 'finish'),
    _task('c', 'refuse', tempting=('sell', 'finish')),
    _task('d', 'move', tools=('sell', 'move', 'finish')),
    toy_world.task(task_id='e'),
  )
  return task_sets.TaskSet(tasks, tasks, tasks)


def test_training_lacks_the_tools_and_what_needs_them():
  tasks = _set()
  found = withheld_tools.applied(tasks, toy_world.make(), ('sell',))
  assert {t.id: t.world.tools for t in found.train} == {
    'a': ('find', 'move', 'finish', 'refuse'),
    'd': ('move', 'finish'),
    'e': ('find', 'move', 'finish', 'refuse'),
  }
  assert found.validation == tasks.validation and found.test == tasks.test
  assert withheld_tools.needing(tasks.test, ('sell',)) == ['b', 'c']
  for task in found.train:
    assert toy_world.make().check(task) == []


def test_nothing_withheld_changes_nothing():
  tasks = _set()
  assert withheld_tools.applied(tasks, toy_world.make(), ()) is tasks
  assert withheld_tools.applied(tasks, None, ()) is tasks


@pytest.mark.parametrize(
  'withheld, match',
  [
    (('fly',), "toy has no tool 'fly'; it has find, move"),
    (('find', 'move', 'refuse', 'sell', 'finish'), 'every training task needs'),
  ],
)
def test_mistakes_name_the_remedy(withheld, match):
  with pytest.raises(schema.ConfigError, match=match):
    withheld_tools.applied(_set(), toy_world.make(), withheld)
