import json
import struct

import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from agentflow_jax.training import metrics_log


def _lines(path):
  return [json.loads(l) for l in (path / 'metrics.jsonl').open()]


def test_a_line_a_step_and_a_resume_goes_on_after_the_commit(tmp_path):
  log = metrics_log.MetricsLog(epath.Path(tmp_path), tensorboard=False)
  for step in (1, 2, 3):
    log.add(step, {'b': step / 3, 'a': step})
  assert _lines(tmp_path)[2] == {'step': 3, 'a': 3, 'b': 1.0}
  committed = log.lines[:2]
  again = metrics_log.MetricsLog(epath.Path(tmp_path), committed, tensorboard=False)
  again.add(3, {'a': 30})
  assert [l['a'] for l in _lines(tmp_path)] == [1, 2, 30]


def test_nothing_but_the_whole_file_is_left(tmp_path):
  metrics_log.MetricsLog(epath.Path(tmp_path), tensorboard=False).add(1, {'a': 1})
  assert [p.name for p in tmp_path.iterdir()] == [metrics_log.FILE]


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_value_that_is_no_number_is_named(tmp_path, value):
  log = metrics_log.MetricsLog(epath.Path(tmp_path), tensorboard=False)
  with pytest.raises(ValueError, match='metric x is .* at step 1'):
    log.add(1, {'x': value})


def test_tensorboard_gets_the_same_numbers(tmp_path):
  log = metrics_log.MetricsLog(epath.Path(tmp_path))
  log.add(1, {'reward/mean': 0.25})
  log.close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert 'tfevents' in path.name  # What TensorBoard looks for.
  first, session, scalar = _events(path)
  assert first.file_version == 'brain.Event:2'
  assert session.session_log.status == event_pb2.SessionLog.START
  assert session.step == 1
  (value,) = scalar.summary.value
  assert (value.tag, value.simple_value, scalar.step) == ('reward/mean', 0.25, 1)


def _events(path):
  """The events of a file: each is a length, its checksum, bytes, a checksum."""
  data, found = path.read_bytes(), []
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return found


def test_a_resumed_run_hides_the_steps_that_it_makes_again(tmp_path):
  lines = [{'step': 1, 'a': 1.0}, {'step': 2, 'a': 2.0}]
  metrics_log.MetricsLog(epath.Path(tmp_path), lines).close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert _events(path)[1].step == 3
