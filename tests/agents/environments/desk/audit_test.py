"""Right ways pass, wrong ways fail, and checks that are too weak are found."""

import asyncio
import dataclasses
import json

import pytest

from agentflow_jax import records
from agentflow_jax.agents.environments.desk import audit, mutants
from tests.agents.environments.desk import small_world

_TASKS = (small_world.RETURN, small_world.GIVE_BACK, small_world.LEND)


def _audited(*tasks):
  return asyncio.run(audit.audit(small_world.make(), tasks))


def _with_checks(task, checks):
  return dataclasses.replace(
    task, world=dataclasses.replace(task.world, checks=tuple(checks))
  )


@pytest.fixture(scope='module')
def figures():
  return _audited(*_TASKS)


def test_right_ways_pass_and_mutants_fail(figures):
  assert not figures['failures']
  assert not figures['warnings']
  assert not figures['mutants_passing']
  assert figures['errors_of_right_ways'] == 0
  # Two other orders for each of the tasks.
  assert figures['other_right_ways'] == 6
  assert figures['mutants_of_a_feasible_task']['least'] >= 8


def test_every_check_is_needed(figures):
  assert figures['checks_not_needed'] == []
  assert {
    'drop a write',
    'wrong entity',
    'wrong value',
    'finish early',
    'do not end',
    'refuse instead',
    'refuse afterwards',
    'do it anyway',
    'wrong rule',
    'wrong about',
    'finish instead',
  } <= set(figures['operators'])


def test_figures_of_tasks(figures):
  # 7, 4 and 3 calls, each with one that ends the task.
  assert figures['calls'] == {'least': 3, 'mean': 4.67, 'most': 7}
  assert figures['infeasible_share'] == 1 / 3
  assert figures['rules'] == {'late': 1}
  assert figures['share_of_3_dependent_calls'] == 2 / 3
  assert any('largest_rule_share' in p for p in audit.problems(figures))


@pytest.mark.parametrize(
  'task, name',
  [
    (small_world.GIVE_BACK, 'returned'),
    (small_world.RETURN, 'repair opened'),
    (small_world.RETURN, 'notified'),
  ],
)
def test_a_missing_check_is_found(task, name):
  found = _audited(_with_checks(task, [c for c in task.world.checks if c.name != name]))
  assert any('drop a write' in p for p in found['mutants_passing'])
  assert set(found['mutants_passing']) <= set(audit.problems(found))


def test_side_effects_that_are_allowed_are_found():
  task = small_world.RETURN
  found = _audited(
    _with_checks(task, [c for c in task.world.checks if c.kind != 'unchanged'])
  )
  assert any('extra' in p or 'notify' in p for p in found['mutants_passing'])


def test_an_ending_that_may_be_anything_is_found():
  task = small_world.LEND
  checks = [
    c if c.kind != 'ending' else records.Check(c.name, c.kind, {'ended': 'refuse'})
    for c in task.world.checks
  ]
  found = _audited(_with_checks(task, checks))
  operators = {p.split(': ')[1] for p in found['mutants_passing']}
  assert {'wrong rule', 'wrong about'} <= operators


def test_a_wrong_solution_is_found():
  task = small_world.RETURN
  calls = json.loads(task.tags['solution'])
  wrong = [c for c in calls if c['tool'] != 'open_repair']
  found = _audited(
    dataclasses.replace(task, tags={**task.tags, 'solution': json.dumps(wrong)})
  )
  assert any('the right way fails repair opened' in f for f in found['failures'])


def test_a_check_that_holds_at_the_start_is_found():
  task = small_world.GIVE_BACK
  vacuous = small_world.state_check('people', 'select count(*) from person', 7)
  found = _audited(_with_checks(task, [*task.world.checks, vacuous]))
  assert any("'people' holds before" in w for w in found['warnings'])
  assert found['checks_not_needed'] == ['people']


def test_mutants_are_the_same_every_time():
  start = small_world.make().start_of(small_world.RETURN.world)
  assert mutants.of(small_world.RETURN, start) == mutants.of(small_world.RETURN, start)


def test_calls_behind_the_end_are_not_made():
  task = small_world.LEND
  calls = (*mutants.solution_of(task), *mutants.solution_of(task, 'tempting'))
  run = asyncio.run(audit.run(small_world.make(), task, calls))
  assert run.verdict.success and run.ended[0] == 'refuse'
