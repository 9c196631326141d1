"""Tasks of the desk in the environment of the desk: checks tell right from wrong."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from agentflow_jax.agents.environments.desk import audit, environment, mutants
from agentflow_jax.agents.environments.sqlite import database
from agentflow_jax.agents.environments.sqlite import environment as environments
from agentflow_jax.assembly import desk_data
from agentflow_jax.data import desk
from tests.config import mini

@pytest.fixture(scope='module', params=[('easy', 80), ('plain', 20), ('long', 10)])
def prepared(request, tmp_path_factory):
  """An environment and its tasks."""
  directory = tmp_path_factory.mktemp('desk')
  tier, count = request.param
  sizes = {s: desk.Size(1, 4) for s in desk.SPLITS} | {'test': desk.Size(5, count)}
  worlds = desk.write(directory, desk_data.parts(), tier, sizes)
  made = environment.make(environments.seeds_below(worlds), tier)
  return made, desk.load(directory, 'test')


def test_right_ways_pass_without_errors(prepared):
  made, tasks = prepared

  async def main():
    for task in tasks:
      assert not made.check(task)
      for calls in (mutants.solution_of(task), *mutants.other_orders(task)):
        right = await audit.run(made, task, calls)
        assert right.verdict.success and not right.errors, task

  asyncio.run(main())


@pytest.mark.slow
def test_the_audit_is_one_command(tmp_path):
  program = mini.ROOT / 'experiments' / 'benchmarks' / 'desk_audit.py'
  out = tmp_path / 'audit.json'
  subprocess.run(
      [sys.executable, program, f'--out={out}'], check=True, capture_output=True,
      env=os.environ | {'PYTHONPATH': str(mini.ROOT)},
  )
  found = json.loads(out.read_text())
  assert found['tasks'] == 400 and not found['problems']
  assert found['mutants'] > 3000 and len(found['operators']) >= 5


def test_mutants_fail(prepared):
  made, tasks = prepared
  found = asyncio.run(audit.audit(made, tasks[: len(tasks) // 5]))
  assert not found['failures'] and not found['mutants_passing']
  assert found['mutants_excluded'] <= 0.1
  assert found['mutants_of_a_feasible_task']['least'] >= 8
  assert not found['warnings']


def test_the_order_of_rows_does_not_matter(prepared, monkeypatch):
  made, tasks = prepared

  async def main():
    return [
        await audit.run(made, task, calls)
        for task in tasks[:20]
        for calls in (mutants.solution_of(task), *mutants.other_orders(task))
    ]

  before = asyncio.run(main())
  begin = database.Database.__init__

  def turned(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    self._connection.set_authorizer(None)
    self._connection.execute('pragma reverse_unordered_selects = on')
    self._connection.set_authorizer(self._authorize)

  monkeypatch.setattr(database.Database, '__init__', turned)
  assert asyncio.run(main()) == before
