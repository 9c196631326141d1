import collections

from agentflow_jax.training import sources


def test_every_item_comes_once_an_epoch_and_epochs_differ():
  # 7 items, 3 a step: 14 steps of 3 are 6 epochs.
  seen = [
      i for step in range(14) for i in sources.epoch_indices(7, 0, step, 3)
  ]
  epochs = [tuple(seen[i : i + 7]) for i in range(0, 42, 7)]
  assert all(sorted(e) == list(range(7)) for e in epochs)
  assert len(set(epochs)) > 1


def test_a_step_depends_on_the_seed_and_the_step_alone():
  first = sources.epoch_indices(100, 3, 17, 8)
  assert first == sources.epoch_indices(100, 3, 17, 8)
  assert first != sources.epoch_indices(100, 4, 17, 8)
  assert first != sources.epoch_indices(100, 3, 18, 8)


def test_a_step_may_be_longer_than_an_epoch():
  counts = collections.Counter(sources.epoch_indices(3, 0, 0, 7))
  assert sum(counts.values()) == 7
  assert set(counts.values()) <= {2, 3}
