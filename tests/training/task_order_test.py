"""The order of tasks: epochs, and sources by their weights."""

import collections
import json

import numpy as np
import pytest

from agentflow_jax.assembly import task_sets
from agentflow_jax.config import schema
from agentflow_jax.training import task_order


def test_every_item_comes_once_an_epoch_and_epochs_differ():
  # 7 items, 3 a step: 14 steps of 3 are 6 epochs.
  seen = [i for step in range(14) for i in task_order.epoch_indices(7, 0, step, 3)]
  epochs = [tuple(seen[i : i + 7]) for i in range(0, 42, 7)]
  assert all(sorted(e) == list(range(7)) for e in epochs)
  assert len(set(epochs)) > 1


def test_three_sources_of_a_mix_are_asked_by_their_weights(tmp_path):
  sources = {}
  for name, count, weight in (('a', 4, 5), ('b', 9, 3), ('c', 2, 2)):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(
      ''.join(
        json.dumps({'query': f'{name}{i}', 'answer': i}) + '\n' for i in range(count)
      )
    )
    sources[name] = {'path': str(path), 'weight': weight}
  aime = tmp_path / 'aime.json'
  aime.write_text(json.dumps([{'query': 'x', 'answer': 33}]))
  config = schema.TaskSetConfig(
    kind='mixture',
    benchmark='aime24',
    evaluation=str(aime),
    mixture=schema.MixtureConfig(sources=sources),
  )
  tasks = task_sets.load(config, str(tmp_path / 'data'))
  asked = [
    tasks.train[i]
    for step in range(5)
    for i in task_order.mixture_indices(tasks.mixture, 0, step, 10)
  ]
  for n in range(1, 51):
    counts = collections.Counter(t.tags['source'] for t in asked[:n])
    for name, weight in (('a', 5), ('b', 3), ('c', 2)):
      assert abs(counts[name] - n * weight / 10) < 1
  # 50 places: 25, 15 and 10, whole epochs of each source and the rest of one.
  queries = collections.Counter(t.query for t in asked)
  assert sorted(v for q, v in queries.items() if q[0] == 'c') == [5, 5]
  assert sorted(v for q, v in queries.items() if q[0] == 'b') == [1] * 3 + [2] * 6


def test_a_step_depends_on_the_seed_and_the_step_alone():
  first = task_order.epoch_indices(100, 3, 17, 8)
  assert first == task_order.epoch_indices(100, 3, 17, 8)
  assert first != task_order.epoch_indices(100, 4, 17, 8)
  assert first != task_order.epoch_indices(100, 3, 18, 8)


def test_a_step_may_be_longer_than_an_epoch():
  counts = collections.Counter(task_order.epoch_indices(3, 0, 0, 7))
  assert sum(counts.values()) == 7
  assert set(counts.values()) <= {2, 3}


_PARTS = (
  task_sets.Part('large', 100, 3),
  task_sets.Part('small', 7, 1),
)  # Items 0 to 99, and 100 to 106.


def _mixed(seed, steps, count, parts=_PARTS):
  return [
    i for step in steps for i in task_order.mixture_indices(parts, seed, step, count)
  ]


def test_any_window_of_two_sources_holds_their_shares():
  is_large = np.array(_mixed(0, range(60), 5)) < 100
  before = np.concatenate([[0], np.cumsum(is_large)])
  for length in range(1, 41):
    counts = before[length:] - before[:-length]
    share = length * 3 / 4
    assert counts.min() >= np.floor(share) and counts.max() <= np.ceil(share)


@pytest.mark.parametrize('weights', [(10, 13), (5, 3, 2), (1, 1, 1, 7), (6, 4)])
def test_no_prefix_is_further_from_the_weights_than_it_must_be(weights):
  # Tijdeman's bound: 1/2 for two sources, 3/4 for three, 5/6 for four.
  bound = 1 - 1 / (2 * len(weights) - 2)
  parts = [task_sets.Part(f's{i}', 50, w) for i, w in enumerate(weights)]
  which = np.array(_mixed(0, range(40), 7, parts)) // 50
  counts = np.cumsum(which[:, None] == np.arange(len(weights)), axis=0)
  places = np.arange(1, len(which) + 1)[:, None]
  shares = places * np.array(weights) / sum(weights)
  assert np.abs(counts - shares).max() <= bound + 1e-9


def test_steps_of_another_length_are_the_same_order():
  # So that a step says where it is: 12 steps of 5 are 5 steps of 12.
  whole = _mixed(3, range(12), 5)
  assert whole == _mixed(3, range(5), 12) == _mixed(3, [0], 60)
  task_order._order.cache_clear()  # A resume knows nothing of before.
  assert _mixed(3, range(7, 12), 5) == whole[35:]


def test_every_source_has_epochs_of_its_own():
  # 160 places: 120 of the large source, 40 of the small one.
  chosen = _mixed(0, range(20), 8)
  large = [i for i in chosen if i < 100]
  small = [i for i in chosen if i >= 100]
  assert len(large) == 120 and len(small) == 40
  assert sorted(large[:100]) == list(range(100))
  assert len(set(large[100:])) == 20
  epochs = [tuple(small[i : i + 7]) for i in range(0, 35, 7)]
  assert all(sorted(e) == list(range(100, 107)) for e in epochs)
  assert len(set(epochs)) > 1


def test_seeds_and_sources_of_one_size_differ():
  assert _mixed(0, [0], 60) != _mixed(1, [0], 60)
  twins = [task_sets.Part('a', 50, 1), task_sets.Part('b', 50, 1)]
  chosen = _mixed(0, [0], 100, twins)
  assert [i for i in chosen if i < 50] != [i - 50 for i in chosen if i >= 50]


def test_one_source_alone_and_weights_with_a_common_divisor():
  alone = _mixed(0, range(4), 3, [task_sets.Part('a', 6, 5)])
  assert sorted(alone[:6]) == sorted(alone[6:]) == list(range(6))
  doubled = [task_sets.Part(p.source, p.items, 2 * p.weight) for p in _PARTS]
  assert _mixed(0, range(4), 9, doubled) == _mixed(0, range(4), 9)
