"""The queue of groups that are trained on again."""

import dataclasses
import json

import numpy as np
import pytest
import zstandard
from etils import epath

from agentflow_jax import records
from agentflow_jax.config import schema
from agentflow_jax.core import flow_grpo
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import sample_queue, turn_rows

_GRPO = flow_grpo.FlowGrpoConfig()


def _group(name, rewards=(1.0, 0.0), version=0, logprob=-0.1):
  """Rollouts of one turn of two tokens, recorded at one log probability."""

  def trajectory(i, reward):
    completion = records.Completion(
      '', (1, 2), (3, 4 + i), (logprob, logprob), params_version=version
    )
    return records.Trajectory(
      name,
      i,
      records.Status.ANSWERED,
      (records.Turn(completion, records.SamplingSpec()),),
      reward=reward,
    )

  return records.Group(
    records.Task(name, 'q', ('a',), 'r'),
    tuple(trajectory(i, r) for i, r in enumerate(rewards)),
  )


def _extras(groups):
  found = turn_rows.flow_grpo_rows(groups, _GRPO).extras
  return sample_queue.checksums(groups, found)


def _queue(**config):
  return sample_queue.SampleQueue(schema.QueueConfig(**({'size': 9} | config)))


def _admitted(queue, step, *groups):
  queue.admit(step, groups, _extras(groups))


def _rows(one):
  return turn_rows.flow_grpo_rows([one.group], _GRPO, {0: one.advantages}).rows


def _zeros(rows):
  """Scores 0 nats: the gap is what was recorded."""
  return [np.zeros(len(row.response_ids), np.float32) for row in rows]


def _take(queue, count, score=_zeros, at_once=2):
  return [
    (one.group.task.id, gap) for one, gap in queue.take(count, _rows, score, at_once)
  ]


def test_the_newest_groups_come_first_and_keep_their_advantages():
  queue = _queue()
  _admitted(queue, 0, _group('a'), _group('b'))
  _admitted(queue, 1, _group('c'), _group('d', (0.0, 1.0)))
  queue.begin(2)
  taken = queue.take(3, _rows, _zeros, 2)
  assert [one.group.task.id for one, _ in taken] == ['c', 'd', 'a']
  (_, second, _) = taken
  # (0 - 1/2) / sqrt(1/2), and the other way round.
  np.testing.assert_allclose(second[0].advantages, [-0.7071, 0.7071], atol=1e-4)
  rows = _rows(second[0])
  assert not any(row.fresh for row in rows)
  assert [row.advantage for row in rows] == list(second[0].advantages)


def test_only_groups_within_the_bounds_are_admitted():
  queue = _queue(min_std=0.3, reward_low=0.2, reward_high=0.6)
  _admitted(
    queue,
    0,
    _group('equal', (1.0, 1.0)),
    _group('narrow', (0.4, 0.6)),
    _group('easy', (1.0, 0.4)),
    _group('hard', (0.0, 0.3, 0.0)),
    _group('good', (0.0, 1.0)),
    _group('unscored', (None, None)),
  )
  assert queue.content() == [[0, 4, 0]]


def test_groups_leave_for_a_reason_that_is_counted():
  queue = _queue(size=3, max_age=2, uses=2, max_gap=0.5)
  _admitted(queue, 0, _group('old'), _group('older', logprob=-0.4))
  _admitted(queue, 1, _group('far', logprob=-0.6), _group('new'))
  # Four, of which three are kept: the last of the oldest step goes.
  assert queue.content() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
  assert queue.metrics([], 1, 2)['queue/evicted/size'] == 1
  queue.begin(2)
  taken = queue.take(2, _rows, _zeros, 1)
  assert [one.group.task.id for one, _ in taken] == ['new', 'old']
  queue.use([one for one, _ in taken])
  found = queue.metrics(taken, 2, 2)
  assert found['queue/evicted/gap'] == 1 and found['queue/evicted/size'] == 0
  assert (found['queue/reused'], found['queue/saved']) == (2, 4)
  assert (found['queue/age_mean'], found['queue/age_max']) == (1.5, 2)
  assert found['queue/gap_max'] == pytest.approx(0.1)
  assert queue.content() == [[0, 0, 1], [1, 1, 1]]
  queue.begin(3)  # Two steps after step 1, and three after step 0.
  assert queue.metrics([], 3, 2)['queue/evicted/age'] == 1
  queue.use([one for one, _ in queue.take(1, _rows, _zeros, 1)])
  assert queue.content() == []
  assert queue.metrics([], 3, 2)['queue/evicted/uses'] == 1


def test_a_gap_that_is_not_a_number_is_beyond_any_bound():
  queue = _queue()
  _admitted(queue, 0, _group('a'))
  queue.begin(1)
  nan = lambda rows: [x + np.float32(np.nan) for x in _zeros(rows)]
  assert _take(queue, 1, nan) == []
  assert queue.metrics([], 1, 2)['queue/evicted/gap'] == 1


def test_one_target_beyond_the_bound_is_enough():
  queue = _queue(max_gap=1.0)
  _admitted(queue, 0, _group('a'))
  queue.begin(1)

  def score(rows):
    scores = _zeros(rows)
    scores[-1][-1] = -1.2
    return scores

  assert _take(queue, 1, score) == []
  assert queue.content() == []


def test_groups_are_scored_only_as_long_as_some_are_needed():
  queue, sizes = _queue(), []
  for step in range(3):
    _admitted(queue, step, _group(f'{step}a'), _group(f'{step}b'))
  queue.begin(3)

  def score(rows):
    sizes.append(len(rows) // 2)
    return _zeros(rows)

  assert [name for name, _ in _take(queue, 3, score)] == ['2a', '2b', '1a']
  assert sizes == [2, 1]
  assert _take(queue, 0, score) == [] and sizes == [2, 1]


def _committed(tmp_path, queue=None):
  """Two steps' records; the queue holds two groups of the first, one of the second."""
  queue = queue or _queue(uses=3)
  for step in range(2):
    groups = [_group(f'{step}a', version=step), _group(f'{step}b', version=step)]
    extras = _extras(groups)
    queue.begin(step)
    if step:
      (taken,) = queue.take(1, _rows, _zeros, 1)
      queue.use([taken[0]])
    queue.admit(step, groups[: 2 - step], extras)
    rollout_files.write(
      _path(tmp_path, step),
      groups,
      extras,
      header={sample_queue.FIELD: queue.content()},
    )
  return queue


def _path(tmp_path, step):
  return epath.Path(tmp_path) / f'step_{step}.zst'


def _restored(tmp_path):
  queue = _queue(uses=3)
  queue.restore(2, lambda step: rollout_files.read_all(_path(tmp_path, step)))
  return queue


def test_a_queue_is_rebuilt_from_records_alone(tmp_path):
  whole, again = _committed(tmp_path), _restored(tmp_path)
  assert again.content() == whole.content() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
  for queue in (whole, again):
    queue.begin(2)
  taken = [queue.take(3, _rows, _zeros, 2) for queue in (whole, again)]
  assert taken[0] == taken[1]
  again.restore(0, None)
  assert again.content() == []


def _edited(path, change):
  """Writes a record anew, with its JSON lines changed."""
  data = zstandard.ZstdDecompressor().decompress(path.read_bytes())
  lines = [json.loads(line) for line in data.decode().splitlines()]
  change(lines)
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))


def _turn(lines):
  return next(l for l in lines if l['kind'] == 'turn')['completion']


def _rollout(lines):
  return next(l for l in lines if l.get('kind') == 'rollout')


@pytest.mark.parametrize(
  'change',
  [
    lambda lines: _turn(lines[1:])['logprobs'].__setitem__(0, -0.1001),
    lambda lines: _turn(lines[1:]).update(params_version=1),
    lambda lines: _turn(lines[1:])['response_ids'].__setitem__(0, 9),
    lambda lines: _turn(lines[1:])['prompt_ids'].__setitem__(1, 9),
    lambda lines: _rollout(lines[1:]).update(advantage=3.0),
    lambda lines: _rollout(lines[1:]).update(reward=0.5),
    lambda lines: _rollout(lines[1:]).pop('checksum'),
    lambda lines: lines.__delitem__(slice(1, None)),
  ],
)
def test_a_record_that_was_altered_is_never_trained_on(tmp_path, change):
  _committed(tmp_path)
  _restored(tmp_path)
  _edited(_path(tmp_path, 0), change)
  with pytest.raises(rollout_files.RecordError, match='step_0.zst: group 0'):
    _restored(tmp_path)


def test_a_record_of_another_step_in_its_place_is_noticed(tmp_path):
  _committed(tmp_path)
  data = _path(tmp_path, 1).read_bytes()
  _path(tmp_path, 0).write_bytes(data)
  with pytest.raises(rollout_files.RecordError, match='altered'):
    _restored(tmp_path)


def test_a_record_without_the_queue_is_refused(tmp_path):
  _committed(tmp_path)
  _edited(_path(tmp_path, 1), lambda lines: lines[0].pop(sample_queue.FIELD))
  with pytest.raises(rollout_files.RecordError, match='first line'):
    _restored(tmp_path)


def test_checksums_do_not_depend_on_the_clock():
  group = _group('a')
  trajectory = dataclasses.replace(group.trajectories[0], seconds={'x': 1.0})
  assert sample_queue.checksum(trajectory, 0.5) == sample_queue.checksum(
    group.trajectories[0], 0.5
  )
