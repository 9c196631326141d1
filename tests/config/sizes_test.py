"""Sizes that follow from others."""

import dataclasses

import pytest

from agentflow_jax.config import consistency, loading, schema, sizes
from tests.config import mini

_OWN = str(mini.ROOT / 'experiments' / 'own_tasks.py')


def test_a_flag_for_longer_prompts_and_responses_is_enough():
  config = loading.load(
    _OWN,
    [('planner.max_prompt_tokens', '700'), ('planner.sampling.max_new_tokens', '90')],
  )
  consistency.check(config)
  assert config.engine.max_prompt_tokens == 700
  assert config.engine.max_new_tokens == 90
  assert config.batch.tokens_per_row == 896  # 790, rounded up.


def test_a_frozen_module_counts():
  config = loading.load(
    _OWN,
    [
      ('agent.generator.backend', 'frozen'),
      ('agent.generator.sampling.max_new_tokens', '300'),
    ],
  )
  consistency.check(config)
  assert config.engine.max_new_tokens == 300


def test_what_is_large_enough_stays():
  config = loading.load(_OWN)
  assert sizes.raised(config) == config
  smaller = dataclasses.replace(
    config, planner=dataclasses.replace(config.planner, max_prompt_tokens=64)
  )
  assert sizes.raised(smaller).engine == config.engine


def test_where_sizes_are_given_nothing_changes():
  config = schema.Config(name='x', planner=schema.PlannerConfig(max_prompt_tokens=999))
  assert sizes.raised(config) == config


def test_a_size_that_a_flag_sets_is_refused_where_it_is_too_small():
  config = loading.load(_OWN, [('batch.tokens_per_row', '128')])
  assert config.batch.tokens_per_row == 128
  with pytest.raises(schema.ConfigError, match='batch.tokens_per_row 128'):
    consistency.check(config)
