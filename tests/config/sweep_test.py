"""Lists of overrides."""

import random

import pytest

from agentflow_jax.config import consistency, loading, schema
from agentflow_jax.config import sweep, unread
from tests.config import mini


def test_a_grid_is_every_combination():
  assert sweep.grid({'a': [1, 2], 'b': [True, (3, 4)]}) == [
    {'a': '1', 'b': 'true'},
    {'a': '1', 'b': '3,4'},
    {'a': '2', 'b': 'true'},
    {'a': '2', 'b': '3,4'},
  ]


def test_zipped_fields_go_together():
  assert sweep.zipped({'a': [1, 2], 'b': ['x', 'y']}) == [
    {'a': '1', 'b': 'x'},
    {'a': '2', 'b': 'y'},
  ]
  with pytest.raises(ValueError, match="{'a': 2, 'b': 1}"):
    sweep.zipped({'a': [1, 2], 'b': ['x']})


def test_chained_sweeps_have_each_run_once():
  a, b = sweep.grid({'a': [1, 2]}), sweep.grid({'a': [2, 3]})
  assert sweep.chain(a, b) == [{'a': '1'}, {'a': '2'}, {'a': '3'}]


def test_a_product_joins_and_refuses_what_contradicts():
  a, b = sweep.grid({'a': [1, 2]}), sweep.grid({'b': [3]})
  assert sweep.product(a, b) == [{'a': '1', 'b': '3'}, {'a': '2', 'b': '3'}]
  with pytest.raises(ValueError, match='two sweeps set a'):
    sweep.product(a, a)


def test_samples_are_the_same_for_a_seed_and_within_the_space():
  space = {'lr': lambda rng: 10 ** rng.uniform(-5, -3), 'k': [1, 2, 3]}
  runs = sweep.sample(space, 20, seed=1)
  assert runs == sweep.sample(space, 20, seed=1)
  assert runs != sweep.sample(space, 20, seed=2)
  assert {r['k'] for r in runs} == {'1', '2', '3'}
  assert all(1e-5 <= float(r['lr']) <= 1e-3 for r in runs)
  expected = random.Random(1).uniform(-5, -3)
  assert float(runs[0]['lr']) == 10**expected


@pytest.mark.parametrize(
  'name, count',
  [
    ('ablations', 28),
    ('flow_grpo_qwen2p5_7b', 7),
    ('turn_scaling', 4),
    ('tool_ablation', 6),
  ],
)
def test_the_paper_s_ablations_are_runs_of_configs_that_exist(name, count):
  path = str(mini.ROOT / 'experiments' / f'{name}.py')
  runs = schema.load_module(path).get_sweep()
  assert len(runs) == count
  for overrides in runs:
    config = loading.load(path, tuple(overrides.items()))
    consistency.check_trains(config)
    consistency.check(config)
    unread.check_flags(config, list(overrides))
