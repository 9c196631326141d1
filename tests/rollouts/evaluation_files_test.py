"""Files of evaluations that are read; tests/evaluation/ writes whole ones."""

import json
import math

import pytest
from etils import epath

from agentflow_jax.files import reading
from agentflow_jax.rollouts import evaluated_items, evaluation_files


def test_what_an_older_file_lacks_is_unknown(tmp_path):
  (tmp_path / 'evaluations').mkdir()
  path = tmp_path / 'evaluations' / 'old.json'
  turn = {'planner': 'p', 'tool': None}
  item = {'id': 'a', 'gold': ['x', 'y'], 'status': 'judge_unreachable', 'turns': [turn]}
  path.write_text(json.dumps({'accuracy': 0.5, 'items': [item], 'trials': 3}))
  found = evaluation_files.read_all(epath.Path(tmp_path))['old']
  assert (found.name, found.accuracy, found.items_scored) == ('old', 0.5, 0)
  assert math.isnan(found.accuracy_over_requested) and found.judged is None
  (item,) = found.items
  assert (item.gold, item.reward, item.world) == ('x | y', None, None)
  assert item.status == 'reward_unreachable'  # Its name of today.
  assert item.turns == (evaluated_items.Turn('p'),)
  assert found.figures == {
    'accuracy': 0.5,
    **dict.fromkeys(('items_requested', 'items_scored'), 0),
    **dict.fromkeys(('rollouts_requested', 'rollouts_scored'), 0),
    'trials': 3,
  }


@pytest.mark.parametrize(
  'content',
  [
    '[]',
    '5',
    '{',
    '{"items": 5}',
    '{"by_hops": [1]}',
    '{"judge_differs_from_rule": 5}',
  ],
)
def test_a_broken_file_is_named(tmp_path, content):
  path = tmp_path / 'final.json'
  path.write_text(content)
  with pytest.raises(reading.FileError, match='final.json'):
    evaluation_files.read(epath.Path(path))


def test_only_files_of_evaluations_are_read_in_the_order_of_their_names(tmp_path):
  assert evaluation_files.read_all(epath.Path(tmp_path)) == {}
  for name in ('start', 'final'):
    evaluation_files.write(
      epath.Path(tmp_path), evaluation_files.EvaluationFile(name, accuracy=0.5)
    )
  (tmp_path / 'evaluations' / 'journal').mkdir()
  assert list(evaluation_files.read_all(epath.Path(tmp_path))) == ['final', 'start']
