"""Runs of several processes: the same numbers, and what happens when one ends.

Each process has its part of eight virtual CPU devices; they speak through gloo.
"""

import json
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from agentflow_jax.rollouts import rollout_files
from agentflow_jax.runtime import exits
from agentflow_jax.training import run
from tests.config import mini

_CONFIG = """
import pickle

def get_config():
  with open({path!r}, 'rb') as f:
    return pickle.load(f)
"""


class _Job:
  """A run in several processes."""

  def __init__(
    self, directory, workdir, processes, *flags, grace=20, config='config.py'
  ):
    self.workdir = directory / workdir
    self.log = directory / f'{workdir}.{time.monotonic_ns()}.log'
    with open(self.log, 'wb') as log:
      self._launcher = subprocess.Popen(
        [
          sys.executable,
          'launch/local.py',
          f'--processes={processes}',
          f'--devices={8 // processes}',
          f'--grace={grace}',
          '--',
          sys.executable,
          '-m',
          'agentflow_jax.train',
          '--quiet',
          f'--config={directory / config}',
          f'--workdir={self.workdir}',
          *flags,
        ],
        cwd=mini.ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
      )

  def pids(self):
    """Of the processes that this job has, once all have begun."""
    found = re.findall(r'^process \d+ is (\d+)$', self.text(), re.MULTILINE)
    return [int(pid) for pid in found]

  def text(self):
    return self.log.read_text()

  def steps(self):
    path = self.workdir / 'metrics.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0

  def wait_for_step(self, step):
    deadline = time.monotonic() + 300
    while self.steps() < step:
      assert self._launcher.poll() is None, self.text()
      assert time.monotonic() < deadline, self.text()
      time.sleep(0.05)

  def terminate(self):
    self._launcher.send_signal(signal.SIGTERM)

  def wait(self):
    try:
      return self._launcher.wait(300)
    except subprocess.TimeoutExpired:
      self._launcher.kill()
      raise


@pytest.fixture(scope='module')
def pair(alone):
  """The workdir of an unbroken run of two processes."""
  job = _Job(alone, 'on_2', 2)
  assert job.wait() == 0, job.text()
  return job.workdir


def _lines(workdir):
  """The metrics of a run without what depends on the clock."""
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if not k.startswith(('seconds/', 'rate/'))
    }
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """A run of this process alone, and the directory of its config."""
  directory = tmp_path_factory.mktemp('processes')
  config = mini.config(directory / 'in', steps=3, checkpoint_every=2)
  (directory / 'config.pickle').write_bytes(pickle.dumps(config))
  (directory / 'config.py').write_text(
    _CONFIG.format(path=str(directory / 'config.pickle'))
  )
  run.train(config, str(directory / 'alone'), quiet=True)
  return directory


def _assert_same(workdir, alone, gap=1e-6):
  """`gap` bounds what log probabilities of engine and update may differ by."""
  got, expected = _lines(workdir), _lines(alone / 'alone')
  assert len(got) == len(expected) == 3
  for line, other in zip(got, expected):
    assert line.keys() == other.keys()
    for name, value in line.items():
      bound = gap if 'logprob_gap' in name else 1e-6
      assert value == pytest.approx(other[name], rel=1e-5, abs=bound), name
  for path in (alone / 'alone' / 'rollouts').iterdir():
    # Nine rollouts of three queries: uneven shares, and work for four.
    ours, theirs = (
      rollout_files.read(p) for p in (workdir / 'rollouts' / path.name, path)
    )
    assert [g.task.query for g in ours] == [g.task.query for g in theirs]
    assert [
      t.completion.response_ids for g in ours for r in g.trajectories for t in r.turns
    ] == [
      t.completion.response_ids for g in theirs for r in g.trajectories for t in r.turns
    ]


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one_within_tolerances(alone, pair):
  # Not to the bit: one process adds the gradients of eight devices in the order
  # of the devices, and several processes in the order of gloo's ring.
  _assert_same(pair, alone)
  assert (pair / 'report.html').exists()
  assert len(list((pair / 'evaluations').iterdir())) == 4
  summary = json.loads((pair / 'summary.json').read_text())
  assert summary['compiles/after_warmup'] == 0


@pytest.mark.slow
def test_a_run_of_four_processes_ends_in_the_bits_of_two(alone, pair):
  # The ring joins devices: the processes that hold them do not matter.
  job = _Job(alone, 'on_4', 4)
  assert job.wait() == 0, job.text()
  assert mini.fingerprint(job.workdir) == mini.fingerprint(pair)


@pytest.mark.slow
def test_samplers_split_over_a_process_s_devices_sample_the_same(alone):
  job = _Job(alone, 'split', 2, '--config.mesh.sampler_devices=-1')
  assert job.wait() == 0, job.text()
  # The sums of a product that is split are made in another order.
  _assert_same(job.workdir, alone, gap=1e-5)
  summary = json.loads((job.workdir / 'summary.json').read_text())
  assert summary['compiles/after_warmup'] == 0


@pytest.mark.slow
@pytest.mark.parametrize('split', [1, -1])
def test_sets_that_processes_recorded_are_told_to_all(alone, split):
  flags = (
    '--config.planner.sampling.top_p=0.9',
    '--config.engine.max_kept=8',
    '--config.train.steps=2',
    f'--config.mesh.sampler_devices={split}',
  )
  found = []
  for processes in (1, 2):
    job = _Job(alone, f'kept_{split}_on_{processes}', processes, *flags)
    assert job.wait() == 0, job.text()
    summary = json.loads((job.workdir / 'summary.json').read_text())
    assert summary['compiles/after_warmup'] == 0
    lines = (job.workdir / 'metrics.jsonl').read_text().splitlines()
    assert all(json.loads(l)['update/logprob_gap/max'] <= 1e-5 for l in lines)
    found.append(
      [
        (t.completion.response_ids, t.completion.kept)
        for path in sorted((job.workdir / 'rollouts').iterdir())
        for g in rollout_files.read(path)
        for r in g.trajectories
        for t in r.turns
      ]
    )
  assert found[0] == found[1]
  assert len(found[0]) > 10 and all(kept for _, kept in found[0])


@pytest.mark.slow
def test_a_queue_holds_the_same_on_two_processes(alone):
  flags = [
    f'--config.{name}'
    for name in (
      'train.steps=5',
      'train.queries_per_step=4',
      'train.group_size=2',
      'train.mini_batches=2',
      'optimizer.learning_rate=1e-3',
      'evaluation.every=0',
      'evaluation.start_and_final=false',
      'flow_grpo.old_logprobs=recompute',
      'flow_grpo.importance_cap=2',
      'flow_grpo.importance_level=rollout',
      'queue.size=3',
      'queue.share=0.75',
      'queue.uses=2',
    )
  ]
  found = []
  for processes in (1, 2):
    job = _Job(alone, f'queue_on_{processes}', processes, *flags)
    assert job.wait() == 0, job.text()
    summary = json.loads((job.workdir / 'summary.json').read_text())
    assert summary['compiles/after_warmup'] == 0
    headers = [
      rollout_files.read_all(path).header
      for path in sorted((job.workdir / 'rollouts').iterdir())
    ]
    lines = [
      {k: v for k, v in line.items() if k.startswith('queue/')}
      for line in _lines(job.workdir)
    ]
    gaps = [line.pop('queue/gap_max') for line in lines]
    found.append((headers, lines, gaps))
  assert found[0][:2] == found[1][:2]
  assert found[0][2] == pytest.approx(found[1][2], abs=1e-4)
  assert sum(line['queue/reused'] for line in found[0][1]) > 0


@pytest.mark.slow
def test_told_to_stop_it_commits_and_goes_on_with_other_processes(alone, pair):
  job = _Job(alone, 'stopped', 4)
  job.wait_for_step(1)  # Nothing is committed before the second.
  job.terminate()
  assert job.wait() == 75, job.text()
  assert 'SIGTERM' in job.text()
  assert job.steps() < 3
  assert [p.name for p in (job.workdir / 'checkpoints').iterdir()]
  again = _Job(alone, 'stopped', 2)
  assert again.wait() == 0, again.text()
  assert mini.fingerprint(job.workdir) == mini.fingerprint(pair)


@pytest.mark.slow
def test_one_killed_at_any_moment_ends_all_and_loses_nothing(alone, pair):
  rng = random.Random(0)
  commits = lambda job: max(
    (int(p.name) for p in (job.workdir / 'checkpoints').glob('*') if p.name.isdigit()),
    default=0,
  )
  kills, name = 0, 'killed'
  while kills < 10:
    job = _Job(alone, name, 2, '--heartbeat_seconds=10')
    time.sleep(rng.uniform(2.0, 16.0))
    committed, victim = commits(job), rng.choice(job.pids()[-2:])
    try:
      os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:  # It was done: another run.
      assert job.wait() == 0, job.text()
      assert mini.fingerprint(job.workdir) == mini.fingerprint(pair)
      name = f'killed_{kills}'
      continue
    start = time.monotonic()
    code = job.wait()
    assert time.monotonic() - start < 60, job.text()
    if code == 0:  # Its work was done, and it was about to leave.
      continue
    kills += 1
    assert 'was ended by SIGKILL' in job.text()
    assert 'Traceback' not in job.text()
    assert commits(job) >= committed
  job = _Job(alone, name, 2)
  assert job.wait() == 0, job.text()
  assert mini.fingerprint(job.workdir) == mini.fingerprint(pair)


_HANGING = """
import asyncio, dataclasses, pathlib, pickle, time
import jax
from agentflow_jax.agents.tools.search import search_tool as search

WORKDIR, BLOCKS = pathlib.Path({workdir!r}), {blocks}
make = search.make

def hanging(*args, **kwargs):
  tool = make(*args, **kwargs)

  async def call(arguments):
    # Once, so that the same command goes on; after the commit of step 2.
    begun = WORKDIR / 'hung.txt'
    if (
        jax.process_index() == 1 and not begun.exists()
        and (WORKDIR / 'checkpoints' / '2').exists()
    ):
      begun.touch()
      if BLOCKS:
        time.sleep(1e6)
      await asyncio.Event().wait()
    return await tool.call(arguments)

  return dataclasses.replace(tool, call=call, timeout=2.0)

search.make = hanging

def get_config():
  with open({path!r}, 'rb') as f:
    return pickle.load(f)
"""


@pytest.mark.slow
def test_a_tool_that_blocks_for_ever_ends_all_within_the_step_s_time(alone, pair):
  job = _hanging_job(alone, 'blocked', blocks=True)
  assert job.wait() == exits.HUNG_CODE, job.text()
  assert 'process 1 of 2 hangs: step 3 has taken more than 20 s' in job.text()
  assert (job.workdir / 'hung.txt').exists()
  assert job.steps() == 2
  again = _hanging_job(alone, 'blocked', blocks=True)
  assert again.wait() == 0, again.text()
  assert mini.fingerprint(job.workdir) == mini.fingerprint(pair)


@pytest.mark.slow
def test_a_tool_that_awaits_for_ever_costs_its_rollout_alone(alone):
  job = _hanging_job(alone, 'awaited', blocks=False)
  assert job.wait() == 0, job.text()
  *_, last = _lines(job.workdir)
  assert (last['step'], last['rollouts/requested']) == (3, 9)
  assert last['rollouts/status/tool_unreachable'] == 1
  assert last['rollouts/scored'] == 8


def _hanging_job(alone, name, blocks):
  (alone / f'{name}.py').write_text(
    _HANGING.format(
      workdir=str(alone / name), blocks=blocks, path=str(alone / 'config.pickle')
    )
  )
  return _Job(alone, name, 2, '--step_seconds=20', config=f'{name}.py')


def test_a_workdir_that_is_not_shared_is_one_clear_error(alone, tmp_path):
  flags = [f'--coordinator=127.0.0.1:{_free_port()}', '--num_processes=2']
  both = [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'agentflow_jax.train',
        '--quiet',
        f'--config={alone / "config.py"}',
        f'--workdir={tmp_path / str(i)}',
        f'--process_id={i}',
        *flags,
      ],
      cwd=mini.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
    )
    for i in range(2)
  ]
  said = [p.communicate(timeout=200)[0] for p in both]
  assert both[1].returncode == 2
  assert 'has to be one directory for all processes' in said[1]


def _free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]
