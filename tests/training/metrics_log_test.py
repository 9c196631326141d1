import json

import pytest
from etils import epath

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
  (events,) = (tmp_path / 'tensorboard').iterdir()
  assert b'reward/mean' in events.read_bytes()
