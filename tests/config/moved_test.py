"""Paths that moved say where to."""

import pytest

from agentflow_jax.config import overrides, schema


def test_a_config_of_the_old_path_is_one_clear_error(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('from agentflow_jax.training import config as c\n')
  with pytest.raises(schema.ConfigError) as caught:
    overrides.load(str(path))
  message = str(caught.value)
  assert 'mine.py' in message
  assert 'from agentflow_jax.config import schema as c' in message
  assert '\n' not in message
