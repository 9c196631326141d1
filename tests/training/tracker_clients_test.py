"""What trackers hold after processes were killed, read back by their own libraries.

Nothing here leaves the machine: wandb is offline, MLflow has a local database.
"""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from agentflow_jax.config import overrides, written
from agentflow_jax.training import tracker_clients
from tests.config import mini

_EXTRAS = ('wandb', 'mlflow', 'trackio')


def _needs(*names):
  missing = [name for name in names if importlib.util.find_spec(name) is None]
  return pytest.mark.skipif(
    bool(missing), reason=f'needs the extras {", ".join(missing)}'
  )


@pytest.fixture(name='run')
def _run(tmp_path, monkeypatch):
  for name, value in _environment(tmp_path).items():
    monkeypatch.setenv(name, value)
  monkeypatch.chdir(tmp_path)  # MLflow writes artifacts of a local database there.
  return tracker_clients.Run(
    id='ab12cd34',
    name='mini',
    project='p',
    config={'train.steps': 3, 'seed': 0, 'name': 'mini'},
    facts={'commit': 'c0ffee', 'devices': 8},
    directory=str(tmp_path / 'trackers'),
  )


def _environment(directory):
  (directory / 'trackers').mkdir(exist_ok=True)
  return {
    'WANDB_MODE': 'offline',
    'WANDB_CACHE_DIR': str(directory / 'wandb_cache'),
    'WANDB_DATA_DIR': str(directory / 'wandb_data'),
    'WANDB_ERROR_REPORTING': 'false',
    'MLFLOW_TRACKING_URI': f'sqlite:///{directory}/mlflow.db',
    'TRACKIO_DIR': str(directory / 'trackio'),
    'PYTHONPATH': str(mini.ROOT),
  }


def _steps(first, last, table=None):
  rows = tracker_clients.Table(('a', 'b'), [(1, 'x'), (2, None)])
  return [
    tracker_clients.Step(
      i, {'reward/mean': i / 4, 'step_free': i}, rows if i == table else None
    )
    for i in range(first, last + 1)
  ]


def _wandb_records(directory):
  """Yields (directory of a delivery, wandb's record), in the order of writing.

  The files are a log of LevelDB: blocks of 32 KiB, and in them parts of records, each
  with a checksum, its length, and whether the record begins or ends with it.
  """
  from wandb.proto import wandb_internal_pb2

  for path in sorted(directory.glob('*/wandb/offline-run-*/*.wandb')):
    data, at, record = path.read_bytes(), 7, b''
    while at + 7 <= len(data):
      if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
      length, kind = struct.unpack_from('<HB', data, at + 4)
      record += data[at + 7 : at + 7 + length]
      at += 7 + length
      if kind in (1, 4):
        yield path.parent, wandb_internal_pb2.Record.FromString(record)
        record = b''


def _wandb(directory):
  """Returns ids of all deliveries, their configs, and a list of (step, metrics)."""
  ids, configs, history = {}, {}, []
  for place, record in _wandb_records(directory):
    if record.HasField('run'):
      ids[place] = record.run.run_id
      configs[place] = {
        u.key: json.loads(u.value_json) for u in record.run.config.update
      }
    if record.HasField('history'):
      values = {
        item.key or '/'.join(item.nested_key): json.loads(item.value_json)
        for item in record.history.item
      }
      history.append((values.pop('_step'), values))
  return list(ids.values()), list(configs.values()), history


@pytest.mark.slow
@_needs('wandb')
def test_directories_of_wandb_offline_hold_each_step_once(run, tmp_path):
  one = tracker_clients.Wandb(run)
  assert one.begin() == 0
  one.send(_steps(1, 2, table=2))
  # The next process is killed in the middle of a delivery: its directory is there,
  # and wandb.json does not count its steps.
  cut = tracker_clients.Wandb(run)
  assert cut.begin() == 2
  cut.send(_steps(3, 3))
  (tmp_path / 'trackers' / 'wandb.json').write_text('{"sent": 2}')
  two = tracker_clients.Wandb(run)
  assert two.begin() == 2
  two.send(_steps(3, 4))
  two.close(done=True)
  ids, configs, history = _wandb(tmp_path / 'trackers' / 'wandb')
  assert ids == ['ab12cd34'] * 2
  assert all(c['train.steps'] == 3 and c['run.commit'] == 'c0ffee' for c in configs)
  assert [step for step, _ in history] == [1, 2, 3, 4]
  assert [values['reward/mean'] for _, values in history] == [0.25, 0.5, 0.75, 1.0]
  tables = [s for s, v in history if any(k.startswith('trajectories') for k in v)]
  assert tables == [2]


@pytest.mark.slow
@_needs('mlflow')
def test_mlflow_holds_each_step_once(run):
  import mlflow
  from mlflow import entities

  one = tracker_clients.Mlflow(run)
  assert one.begin() == 0
  one.send(_steps(1, 2, table=2))
  # Killed in step 3: one of its metrics is there, 'step' is not.
  now = int(1000 * time.time())
  one._client.log_batch(one._id, metrics=[entities.Metric('reward/mean', 0.75, now, 3)])
  two = tracker_clients.Mlflow(run)
  assert two.begin() == 2
  two.send(_steps(3, 4))
  two.close(done=True)
  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name('p')
  (found,) = client.search_runs([experiment.experiment_id])
  assert found.info.status == 'FINISHED' and found.info.run_name == 'mini'
  assert found.data.params == {'train.steps': '3', 'seed': '0', 'name': 'mini'}
  assert found.data.tags['run.commit'] == 'c0ffee'
  for key, factor in (('reward/mean', 0.25), ('step_free', 1), ('step', 1)):
    history = client.get_metric_history(found.info.run_id, key)
    assert [(m.step, m.value) for m in history] == [
      (i, i * factor) for i in (1, 2, 3, 4)
    ]
  table = mlflow.artifacts.load_dict(
    f'runs:/{found.info.run_id}/trajectories/step_000002.json'
  )
  assert table == {'columns': ['a', 'b'], 'data': [[1, 'x'], [2, None]]}


@pytest.mark.slow
@_needs('trackio')
def test_trackio_holds_each_step_once(run):
  # A process of its own: it reads TRACKIO_DIR when it is imported.
  program = (
    'import json, sys\n'
    'from agentflow_jax.training import tracker_clients as c\n'
    'from tests.training import tracker_clients_test as t\n'
    'run = c.Run(**json.loads(sys.argv[1]))\n'
    'one = c.Trackio(run)\n'
    'assert one.begin() == 0\n'
    'one.send(t._steps(1, 2, table=2))\n'
    'two = c.Trackio(run)\n'
    'assert two.begin() == 2\n'
    'two.send(t._steps(3, 4))\n'
    'two.close(True)\n'
  )
  subprocess.run(
    [sys.executable, '-c', program, json.dumps(run.__dict__)], check=True, timeout=300
  )
  (found,) = _trackio()
  assert [log['step'] for log in found] == [1, 2, 3, 4]
  assert [log['reward/mean'] for log in found] == [0.25, 0.5, 0.75, 1.0]
  assert [log['step'] for log in found if 'trajectories' in log] == [2]


def _trackio(project='p'):
  """Returns the logs of each run, by Trackio itself in a process of its own."""
  program = (
    'import json, trackio\n'
    'from trackio.sqlite_storage import SQLiteStorage as s\n'
    f'runs = [r.name for r in trackio.Api().runs({project!r})]\n'
    f'print("FOUND" + json.dumps([s.get_logs({project!r}, r) for r in runs]))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    check=True,
    timeout=300,
    text=True,
    stdout=subprocess.PIPE,
  )
  (line,) = [x for x in done.stdout.splitlines() if x.startswith('FOUND')]
  return json.loads(line.removeprefix('FOUND'))


@pytest.mark.slow
@_needs(*_EXTRAS)
def test_a_run_that_was_killed_twice_is_one_run_in_each_tracker(tmp_path, run):
  import mlflow

  del run  # It sets the environment and the directory.
  config = overrides.override(
    mini.config(tmp_path / 'in', steps=3, checkpoint_every=1),
    [
      ('metrics.trackers', ','.join(_EXTRAS)),
      ('metrics.project', 'p'),
      ('metrics.trajectories_every', '2'),
      ('metrics.tracker_seconds', '200'),
      ('evaluation.every', '0'),
      ('evaluation.start_and_final', 'false'),
    ],
  )
  path, workdir = tmp_path / 'config.json', tmp_path / 'out'
  path.write_text(written.text(config))
  command = [
    sys.executable,
    '-m',
    'agentflow_jax.train',
    f'--config={path}',
    f'--workdir={workdir}',
  ]
  # While the first step is being delivered, and once it is counted.
  for moment in ('trackers/wandb/000001', 'checkpoints/2'):
    process = subprocess.Popen(command, start_new_session=True)
    until = time.monotonic() + 500
    while not (workdir / moment).exists():
      assert process.poll() is None and time.monotonic() < until
      time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  subprocess.run(command, check=True, timeout=500)
  lines = [json.loads(x) for x in (workdir / 'metrics.jsonl').open()]
  assert [line['step'] for line in lines] == [1, 2, 3]
  wanted = [{k: v for k, v in line.items() if k != 'step'} for line in lines]

  ids, configs, history = _wandb(workdir / 'trackers' / 'wandb')
  identity = json.loads((workdir / 'trackers' / 'run.json').read_text())['id']
  assert set(ids) == {identity} and [step for step, _ in history] == [1, 2, 3]
  for (_, values), metrics in zip(history, wanted, strict=True):
    assert {k: values[k] for k in metrics} == pytest.approx(metrics)
  assert configs[0]['task_set.kind'] == 'jsonl' and configs[0]['run.devices'] == 8

  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name('p')
  (found,) = client.search_runs([experiment.experiment_id])
  assert found.info.status == 'FINISHED'
  for key in wanted[0]:
    curve = client.get_metric_history(found.info.run_id, key)
    assert [(m.step, m.value) for m in curve] == [
      (i, pytest.approx(metrics[key]))
      for i, metrics in enumerate(wanted, 1)
      if key in metrics
    ]
  assert [a.path for a in client.list_artifacts(found.info.run_id, 'trajectories')] == [
    'trajectories/step_000002.json'
  ]

  (logs,) = _trackio()
  assert [log['step'] for log in logs] == [1, 2, 3]
  for log, metrics in zip(logs, wanted, strict=True):
    assert {k: log[k] for k in metrics} == pytest.approx(metrics)
  assert [log['step'] for log in logs if 'trajectories' in log] == [2]
