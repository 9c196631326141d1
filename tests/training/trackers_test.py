"""Steps reach a tracker in order, each once, whatever happens on the way."""

import json
import os
import sys
import textwrap
import time

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.config import consistency, loading, overrides, schema
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import tracker_clients, tracker_worker, trackers
from tests.config import mini

# A tracker that keeps its steps in a file. A file of the name of a fault makes it
# fail halfway through its next delivery, hang, or end.
_PROGRAM = textwrap.dedent("""
    import json, os, pathlib, sys, time
    from agentflow_jax.training import tracker_worker

    class Fake:
      def __init__(self, run):
        self.run, self.place = run, pathlib.Path(run.directory)
        self.path = self.place / 'held.jsonl'
        print('noise', flush=True)

      def has(self, fault):
        path = self.place / fault
        if path.exists():
          path.unlink()
          return True
        return False

      def held(self):
        return self.path.read_text().splitlines() if self.path.exists() else []

      def begin(self):
        (self.place / 'opened').open('a').write(self.run.id + '\\n')
        return max((json.loads(l)['step'] for l in self.held()), default=0)

      def send(self, steps):
        for i, step in enumerate(steps):
          if i == 1:
            if self.has('fails'):
              raise ConnectionError('the server\\nis down')
            if self.has('ends'):
              os._exit(7)
            if self.has('hangs'):
              time.sleep(1000)
          table = step.table and [list(step.table.columns), step.table.data]
          line = {'step': step.step, 'metrics': step.metrics, 'table': table}
          self.path.open('a').write(json.dumps(line) + '\\n')

      def close(self, done):
        (self.place / 'closed').write_text(str(done))
        if self.has('never_closes'):
          time.sleep(1000)

    tracker_worker.run({'fake': Fake}, grace_seconds=0.5)
""")


def _delivery(tmp_path, seconds=60.0, table_of=lambda step: None):
  program = tmp_path / 'program.py'
  program.write_text(_PROGRAM)
  run = dict(id='r1', name='', project='', config={}, facts={}, directory=str(tmp_path))
  return trackers.Delivery(
    'fake',
    {'tracker': 'fake', 'run': run},
    seconds,
    table_of,
    (sys.executable, str(program)),
  )


def _lines(count):
  return [{'step': i, 'a/b': i / 2} for i in range(1, count + 1)]


def _held(tmp_path):
  path = tmp_path / 'held.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def _wait(holds):
  """Waits for another thread or process; a test that fails ends here."""
  until = time.monotonic() + 60
  while not holds() and time.monotonic() < until:
    time.sleep(0.01)
  assert holds()


def _close(delivery, done=True, seconds=60.0):
  delivery.close(done, time.monotonic() + seconds)


def test_steps_arrive_in_order_with_their_tables_and_a_run_continues(tmp_path):
  table = {'columns': ['a'], 'data': [[1]]}
  first = _delivery(tmp_path, table_of=lambda step: table if step == 2 else None)
  first.cover([])
  assert not (tmp_path / 'opened').exists()  # Nothing is committed.
  first.cover(_lines(1))
  first.cover(_lines(3))
  _close(first, done=False)
  assert not first.problems()
  assert _held(tmp_path) == [
    {'step': 1, 'metrics': {'a/b': 0.5}, 'table': None},
    {'step': 2, 'metrics': {'a/b': 1.0}, 'table': [['a'], [[1]]]},
    {'step': 3, 'metrics': {'a/b': 1.5}, 'table': None},
  ]
  assert (tmp_path / 'closed').read_text() == 'False' and not first.problems()
  # The same run in another process; what is there is not sent again.
  second = _delivery(tmp_path)
  second.cover(_lines(3))
  second.cover(_lines(4))
  _close(second)
  assert [held['step'] for held in _held(tmp_path)] == [1, 2, 3, 4]
  assert (tmp_path / 'opened').read_text() == 'r1\nr1\n'
  assert (tmp_path / 'closed').read_text() == 'True'


@pytest.mark.parametrize('fault', ['fails', 'ends'])
def test_a_failure_halfway_is_said_once_and_made_good(tmp_path, fault):
  (tmp_path / fault).touch()
  delivery = _delivery(tmp_path)
  delivery.cover(_lines(3))
  _wait(lambda: delivery._problems)
  (said,) = delivery.problems()
  assert said.startswith('fake has got 0 of 3 committed steps: ')
  if fault == 'fails':
    assert 'ConnectionError: the server is down' in said
  else:
    assert 'its process ended with code 7' in said
  assert [held['step'] for held in _held(tmp_path)] == [1]
  (tmp_path / fault).touch()
  delivery.cover(_lines(4))  # Steps 2 to 4: it fails again, in the same way.
  _wait(lambda: not (tmp_path / fault).exists())
  _close(delivery)
  assert not delivery.problems()
  again = _delivery(tmp_path)
  again.cover(_lines(4))
  _close(again)
  assert [held['step'] for held in _held(tmp_path)] == [1, 2, 3, 4]


def test_after_a_failure_the_tracker_says_what_it_holds(tmp_path):
  delivery = _delivery(tmp_path)
  delivery.cover(_lines(2))
  _wait(lambda: delivery.sent == 2)
  (tmp_path / 'fails').touch()
  delivery.cover(_lines(4))
  _wait(lambda: delivery._problems)
  held = tmp_path / 'held.jsonl'
  held.write_text(held.read_text().splitlines(keepends=True)[0])  # It lost the rest.
  delivery.cover(_lines(4))
  _close(delivery)
  assert [held['step'] for held in _held(tmp_path)] == [1, 2, 3, 4]


def test_a_tracker_that_hangs_is_left_and_tried_again(tmp_path):
  (tmp_path / 'hangs').touch()
  delivery = _delivery(tmp_path, seconds=1.0)
  delivery.cover(_lines(2))  # Returns while it hangs.
  _wait(lambda: delivery._problems)
  assert 'no answer within 1 s' in delivery.problems()[0]
  delivery.cover(_lines(2))
  _wait(lambda: delivery.sent == 2)
  _close(delivery)
  assert [held['step'] for held in _held(tmp_path)] == [1, 2]


def test_the_end_of_a_run_waits_no_longer_than_it_says(tmp_path):
  (tmp_path / 'never_closes').touch()
  delivery = _delivery(tmp_path, seconds=1000.0)
  delivery.cover(_lines(2))
  _wait(lambda: delivery.sent == 2)
  child = delivery._child
  delivery.close(True, time.monotonic() + 0.2)
  assert 'has got 2 of 2' in delivery.problems()[0]
  _wait(lambda: child.poll() is not None)


def test_a_child_ends_with_the_process_of_the_run(tmp_path):
  (tmp_path / 'hangs').touch()
  delivery = _delivery(tmp_path)
  delivery.cover(_lines(2))
  _wait(lambda: _held(tmp_path) and not (tmp_path / 'hangs').exists())
  delivery._child.stdin.close()  # As when the process is killed.
  assert delivery._child.wait(60) == 1
  _close(delivery)


def test_a_worker_leaves_out_what_its_tracker_holds_and_asks_after_a_failure():
  held, begun, said = [1, 2], [], []

  class Tracker:
    def begin(self):
      begun.append(None)
      return max(held)

    def send(self, steps):
      for step in steps:
        if step.step == 4 and len(begun) == 1:
          raise OSError('full')
        held.append(step.step)

    def close(self, done):
      said.append(done)

  steps = [{'step': i, 'metrics': {}, 'table': None} for i in range(1, 6)]
  tracker_worker.serve(
    Tracker(),
    [{'steps': steps[:3]}, {'steps': steps}, {'steps': steps}, {'close': True}],
    said.append,
  )
  # Where the run is gone, nothing is closed: another process continues.
  tracker_worker.serve(Tracker(), [{'gone': True}, {'close': True}], said.append)
  assert held == [1, 2, 3, 4, 5] and len(begun) == 2
  assert said == [
    {'sent': 3},
    {'error': 'OSError: full'},
    {'sent': 5},
    True,
    {'closed': True},
  ]


def test_names_are_checked_and_a_missing_library_names_its_extra(monkeypatch):
  with pytest.raises(schema.ConfigError, match='trackers=wandb,neptune: give tensor'):
    schema.MetricsConfig(trackers=('wandb', 'neptune'))
  with pytest.raises(schema.ConfigError, match='some of them once each'):
    schema.MetricsConfig(trackers=('wandb', 'wandb'))
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
  trackers.check_installed(schema.MetricsConfig())
  with pytest.raises(schema.ConfigError, match=r'\(the extra `mlflow`\)$'):
    trackers.check_installed(schema.MetricsConfig(trackers=('tensorboard', 'mlflow')))


def test_settings_of_trackers_without_one_are_refused():
  config = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
  for name, value in (
    ('project', 'p'),
    ('trajectories_every', '2'),
    ('tracker_seconds', '5'),
  ):
    with pytest.raises(schema.ConfigError, match=f'metrics.{name} is set'):
      consistency.check(overrides.override(config, [(f'metrics.{name}', value)]))
  more = [('metrics.trackers', 'wandb'), ('metrics.trajectories_every', '2')]
  consistency.check(overrides.override(config, more))
  for field in (('train.rollout_records', 'none'), ('algorithm', 'sft')):
    with pytest.raises(schema.ConfigError, match='rollout_records=all'):
      consistency.check(overrides.override(config, [*more, field]))
  consistency.check(overrides.override(config, [*more, ('algorithm', 'none')]))


def test_a_run_keeps_its_id_and_tells_no_passwords(tmp_path):
  config = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
  config = overrides.override(
    config,
    [
      ('metrics.trackers', 'mlflow,wandb'),
      ('metrics.project', 'p'),
      ('agent.tools.wikipedia_url', 'https://me:secret@host/w'),
    ],
  )
  runs = []
  for _ in range(2):
    made = trackers.of_run(config, epath.Path(tmp_path), None)
    assert [d._hello['tracker'] for d in made._deliveries] == ['mlflow', 'wandb']
    runs += [d._hello['run'] for d in made._deliveries]
  assert all(run == runs[0] for run in runs) and len(runs[0]['id']) == 8
  assert runs[0]['config']['agent.tools.wikipedia_url'] == 'https://host/w'
  assert runs[0]['facts'].keys() >= {'commit', 'host', 'device', 'devices', 'jax'}
  assert runs[0]['directory'] == os.path.join(tmp_path, 'trackers')
  tracker_clients.Run(**json.loads(json.dumps(runs[0])))
  other = trackers.of_run(config, epath.Path(tmp_path / 'other'), None)
  assert other._deliveries[0]._hello['run']['id'] != runs[0]['id']
  assert not trackers.of_run(schema.Config(name=''), epath.Path(tmp_path), None).close(
    True
  )


def test_a_table_samples_rollouts_of_its_step_always_the_same(tmp_path):
  path = epath.Path(tmp_path) / 'step_000003.p0.jsonl.zst'
  groups = [
    records.Group(
      records.Task(f't{i}', f'Q{i}?', ('a',), 'f1'),
      tuple(
        records.Trajectory(
          f't{i}', j, records.Status.ANSWERED, (), answer='A', reward=0.5
        )
        for j in range(4)
      ),
    )
    for i in range(5)
  ]
  rollout_files.write(path, groups)
  found = trackers.table(path, 3, 0)
  assert found == trackers.table(path, 3, 0) != trackers.table(path, 3, 1)
  table = tracker_clients.Table(**json.loads(json.dumps(found)))
  assert len(table.data) == 8 and len({tuple(row) for row in table.data}) == 8
  for row in table.data:
    said = dict(zip(table.columns, row, strict=True))
    assert said['step'] == 3 and said['query'] == f'Q{said["task"][1:]}?'
    assert (said['status'], said['reward']) == ('answered', 0.5)
    assert 'Answer: A' in said['text']
  assert trackers.table(epath.Path(tmp_path) / 'none', 3, 0) is None
