"""The shipped warm start is what its documented command makes."""

import json

import pytest
from etils import epath

from agentflow_jax.config import loading, overrides
from agentflow_jax.training import run
from agentflow_jax.weights import host_copies, model_directory
from tests.config import mini

_PLANNER = mini.ROOT / 'experiments' / 'geohop_planner'
_SHIPPED = ('config.json', 'model.safetensors', 'tokenizer.model')


def test_the_shipped_weights_fit_their_config_and_4_megabytes():
  config = model_directory.load_config(_PLANNER)
  params = model_directory.load(_PLANNER, config)
  assert params['embedding'].shape == (config.vocab_size, config.d_model)
  assert sum((_PLANNER / n).stat().st_size for n in _SHIPPED) <= 4 * 2**20


def test_the_recorded_accuracy_is_of_these_weights_and_this_teacher():
  recorded = json.loads((_PLANNER / 'accuracy.json').read_text())
  config = loading.load(str(mini.ROOT / 'experiments' / 'geohop_warm_start.py'))
  # A field that was added since then counts as its default.
  default = overrides.flatten(type(config.teacher)())
  for name, value in overrides.flatten(config.teacher).items():
    assert recorded.get(f'teacher/{name}', default[name]) == value
  params = model_directory.load(_PLANNER, model_directory.load_config(_PLANNER))
  assert recorded['params_digest'] == host_copies.params_digest(params)


@pytest.mark.slow
def test_the_command_makes_a_planner_of_the_same_accuracy(tmp_path):
  """About ten minutes on 2 cores."""
  config = loading.load(str(mini.ROOT / 'experiments' / 'geohop_warm_start.py'))
  run.train(config, str(tmp_path))
  made = json.loads((epath.Path(tmp_path) / 'summary.json').read_text())
  recorded = json.loads((_PLANNER / 'accuracy.json').read_text())
  for name in ('eval/accuracy_final', 'eval/accuracy_final_greedy'):
    low, high = recorded[f'{name}/ci_low'], recorded[f'{name}/ci_high']
    assert low <= made[name] <= high
