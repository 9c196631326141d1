"""A config.json can be run again, and says what does not fit."""

import dataclasses
import json

import pytest

from agentflow_jax.config import fields, loading, schema, written
from tests.config import mini

_FILES = sorted(
  path
  for path in (mini.ROOT / 'experiments').glob('*.py')
  if 'def get_config' in path.read_text()
)


@pytest.mark.parametrize('path', _FILES, ids=lambda path: path.stem)
def test_every_config_reads_back_as_it_was(path, tmp_path):
  config = loading.load(str(path))
  file = tmp_path / 'config.json'
  file.write_text(written.text(config))
  assert loading.load(str(file)) == config
  assert not written.differences(config, written.read_flat(file))


def test_flags_change_what_a_config_json_says(tmp_path):
  config = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
  file = tmp_path / 'config.json'
  file.write_text(written.text(config))
  changed = loading.load(str(file), [('train.steps', '7')])
  assert changed.train.steps == 7
  assert written.differences(changed, written.read_flat(file)) == {
    'train.steps': (config.train.steps, 7)
  }


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'train.steps': 'many'}, 'train.steps cannot be "many"'),
    ({'train.steps': True}, 'train.steps cannot be true'),
    ({'train.steps': 0}, 'train.steps must be at least 1'),
    ({'train.step': 3}, 'there is no field train.step'),
    ({'algorithm': 'ppo'}, 'algorithm cannot be "ppo"'),
    ({'agent.verbs': 'find'}, 'agent.verbs cannot be "find"'),
    ({'train': 3, 'train.steps': 3}, "train.steps: 'train' is a value"),
    ({'train': 3}, 'train cannot be 3'),
    ({'optimizer.b1': 2}, 'optimizer: b1 must lie in'),
  ],
)
def test_what_does_not_fit_is_named(change, words, tmp_path):
  file = tmp_path / 'config.json'
  file.write_text(json.dumps({'name': 'x', 'optimizer.learning_rate': 1} | change))
  with pytest.raises(schema.ConfigError) as refused:
    loading.load(str(file))
  assert str(file) in str(refused.value) and words in str(refused.value)


def test_a_field_that_is_missing_has_its_default(tmp_path):
  file = tmp_path / 'config.json'
  file.write_text('{"name": "x", "seed": 3, "optimizer.learning_rate": 1}')
  assert loading.load(str(file)) == schema.Config(
    name='x', seed=3, optimizer=schema.OptimizerConfig(1.0)
  )
  file.write_text('{"seed": 3}')
  with pytest.raises(schema.ConfigError, match='name is missing'):
    loading.load(str(file))


def test_every_field_says_what_it_is():
  found = fields.every()
  names = set(
    written.flat(
      schema.Config(
        name='x',
        planner=schema.PlannerConfig(
          model=schema.ModelConfig(
            vocab_size=8,
            d_model=8,
            n_layers=1,
            n_heads=1,
            n_kv_heads=1,
            head_dim=8,
            d_ff=8,
            max_positions=8,
          )
        ),
      )
    )
  )
  scaling = 'planner.model.rope_scaling'
  assert {n for n in found if not n.startswith(scaling)} == names - {scaling}
  assert not [name for name, field in found.items() if len(field.meaning) < 5]
  steps = found['train.steps']
  assert steps == dataclasses.replace(steps, type='integer', default=40)
  assert steps.meaning.startswith('number of training steps')
  assert not [
    name
    for name, field in found.items()
    if field.meaning.count('(') != field.meaning.count(')')
  ]
  assert '0 for none' in found['evaluation.every'].meaning
  assert found['algorithm'].type == 'flow_grpo|sft|none'
  assert found['agent.verbs'].type == 'comma list of text'
  assert found['planner.dtype'].type == 'float32|bfloat16 or none'


@pytest.mark.parametrize(
  ('mistaken', 'meant'),
  [
    ('lr', 'optimizer.learning_rate'),
    ('learning_rate', 'optimizer.learning_rate'),
    ('train.setps', 'train.steps'),
    ('planer.max_prompt_tokens', 'planner.max_prompt_tokens'),
    ('engine.sampling.temperature', 'planner.sampling.temperature'),
    ('groupsize', 'train.group_size'),
    ('kl', 'flow_grpo.kl_coef'),
  ],
)
def test_a_mistaken_name_is_looked_up_in_the_whole_tree(mistaken, meant):
  assert meant in fields.nearest(mistaken)


def test_nothing_is_near_what_no_field_is_like():
  assert not fields.nearest('zzzz')
