"""Tasks of the desk in the environment of the desk: checks tell right from wrong."""

import asyncio
import collections
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from agentflow_jax import records
from agentflow_jax.agents.environments.desk import actions, audit, environment
from agentflow_jax.agents.environments.desk import mutants
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
    [sys.executable, program, f'--out={out}'],
    check=True,
    capture_output=True,
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


def test_lazy_ways_gain_nothing(prepared):
  """Ending at once, one call again and again, notices to all, and only reading."""
  made, tasks = prepared
  finish = records.ToolCall('finish', {})

  def ways(task):
    right = mutants.solution_of(task)
    yield 'finish', [finish]
    yield 'one call', [right[0]] * 8 + [finish]
    yield (
      'notices',
      [
        records.ToolCall('send_notice', {'person': f'P{i}', 'about': 'I1'})
        for i in range(1, 31)
      ]
      + [finish],
    )
    yield 'reading', [c for c in right if c.tool in actions.READS] + [finish]

  async def main():
    passed = collections.Counter()
    for task in tasks:
      for name, calls in ways(task):
        passed[name] += (await audit.run(made, task, calls)).verdict.success
    return passed

  assert asyncio.run(main()).total() == 0


_AHEAD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static const time_t ahead = 3 * 365 * 24 * 3600;
int clock_gettime(clockid_t which, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(which, now);
  if (which == CLOCK_REALTIME) now->tv_sec += ahead;
  return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
  int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
  int failed = real(now, zone);
  now->tv_sec += ahead;
  return failed;
}
time_t time(time_t *now) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (now) *now = found.tv_sec;
  return found.tv_sec;
}
"""


def _played(directory: str) -> str:
  """Writes tasks and plays them; returns what all of it came to."""
  sizes = {s: desk.Size(1, 4) for s in desk.SPLITS} | {'test': desk.Size(2, 24)}
  worlds = desk.write(directory, desk_data.parts(), 'easy', sizes)
  made = environment.make(environments.seeds_below(worlds), 'easy')
  tasks = desk.load(directory, 'test')

  async def main():
    return [
      await audit.run(made, task, calls)
      for task in tasks
      for calls in (mutants.solution_of(task), *mutants.other_orders(task))
    ]

  return hashlib.sha256(repr((tasks, asyncio.run(main()))).encode()).hexdigest()


@pytest.mark.slow
def test_neither_hash_seed_nor_clock_changes_anything(tmp_path):
  compiler = shutil.which('cc')
  settings = {'as it is': {}, 'hash seed': {'PYTHONHASHSEED': '7'}}
  if compiler:
    (tmp_path / 'ahead.c').write_text(_AHEAD)
    library = tmp_path / 'ahead.so'
    subprocess.run(
      [compiler, '-shared', '-fPIC', '-o', library, tmp_path / 'ahead.c', '-ldl'],
      check=True,
    )
    settings['clock'] = {'LD_PRELOAD': str(library)}
  program = (
    f'import sys, time; sys.path[:0] = {[p for p in sys.path if p]!r}\n'
    'from tests.assembly import desk_worlds_test\n'
    'print(time.time(), desk_worlds_test._played(sys.argv[1]))'
  )
  found = {}
  for name, more in settings.items():
    out = subprocess.run(
      [sys.executable, '-c', program, str(tmp_path / name)],
      check=True,
      capture_output=True,
      text=True,
      env=os.environ | more,
    ).stdout
    said, found[name] = out.split()
    ahead = float(said) - time.time()
    assert (ahead > 1e8 / 2) is (name == 'clock')
  assert len(set(found.values())) == 1, found
