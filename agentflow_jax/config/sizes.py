"""Raises sizes of the engine and the update that are too small for a config."""

import dataclasses
from collections.abc import Collection

from agentflow_jax.config import roles as roles_lib, schema

# Rows of an update are cut at multiples of it.
_ROUND = 128


def raised(config: schema.Config, given: Collection[str] = ()) -> schema.Config:
  """Returns a config whose engine and batch hold what its planner and modules need.

  Sizes that are large enough stay as they are; nothing is made smaller.

  Args:
    config: config with overrides applied. Where its `sizes` is 'given', it is
      returned as it is.
    given: dotted names of the fields that flags set. These stay as they are, too:
      a size that is too small is then an error.
  """
  if config.sizes == 'given':
    return config
  planner = config.planner
  asked = [planner.sampling.max_new_tokens] + [
    role.sampling.max_new_tokens
    for role in roles_lib.roles(config).values()
    if role.backend == 'frozen'
  ]
  longest = planner.max_prompt_tokens + planner.sampling.max_new_tokens
  engine, batch = config.engine, config.batch
  tokens = batch.tokens_per_row
  if tokens < longest:
    tokens = -(-longest // _ROUND) * _ROUND
  needed = {
    'engine.max_prompt_tokens': max(
      engine.max_prompt_tokens, planner.max_prompt_tokens
    ),
    'engine.max_new_tokens': max(engine.max_new_tokens, *asked),
    'batch.tokens_per_row': tokens,
  }
  changes = {'engine': {}, 'batch': {}}
  for name, value in needed.items():
    part, _, field = name.partition('.')
    if name not in given:
      changes[part][field] = value
  return dataclasses.replace(
    config,
    engine=dataclasses.replace(engine, **changes['engine']),
    batch=dataclasses.replace(batch, **changes['batch']),
  )
