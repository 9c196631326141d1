"""Paths that moved say where to."""

import pytest

from agentflow_jax.config import loading, overrides, schema
from agentflow_jax.files import old_names


def test_a_config_of_the_old_path_is_one_clear_error(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('from agentflow_jax.training import config as c\n')
  with pytest.raises(schema.ConfigError) as caught:
    loading.load(str(path))
  message = str(caught.value)
  assert 'mine.py' in message
  assert 'from agentflow_jax.config import schema as c' in message
  assert '\n' not in message


@pytest.mark.parametrize('name', sorted(old_names.FIELDS))
def test_an_old_field_names_the_new_one(name):
  config = schema.Config(name='x')
  with pytest.raises(schema.ConfigError) as caught:
    overrides.override(config, [(name, 'record')])
  assert old_names.FIELDS[name] in str(caught.value)
  # What it names is there.
  assert old_names.FIELDS[name] in overrides.flatten(config)
  assert name not in overrides.flatten(config)
