"""The configs that come with the package, by their names."""

import os
import pathlib

import pytest

from agentflow_jax.config import loading, schema, shipped
from tests.config import mini


def test_a_name_is_the_config_of_that_name():
  path = str(mini.ROOT / 'experiments' / 'quickstart.py')
  assert shipped.path_of('quickstart') == path
  assert loading.load('quickstart') == loading.load(path)
  assert loading.load('quickstart', [('seed', '3')]).seed == 3


def test_every_config_has_its_name_and_nothing_else_has():
  files = {p.stem for p in (mini.ROOT / 'experiments').glob('*.py')}
  assert set(shipped.names()) == files - {'own_code', 'own_environment', 'own_facts'}
  for name in shipped.names():
    assert isinstance(loading.load(name), schema.Config)


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'desk').mkdir()  # Which is no file.
  assert shipped.path_of('desk') == str(mini.ROOT / 'experiments' / 'desk.py')
  mine = pathlib.Path('quickstart')
  mine.write_text('mine')
  assert shipped.path_of('quickstart') == 'quickstart'
  # Paths stay what they are, whether they are there or not.
  for path in ('none.py', 'runs/none/config.json', 'gs://b/run/config.json', 'a/desk'):
    assert shipped.path_of(path) == path


@pytest.mark.parametrize('said', ['quickstrt', '', 'own_code'])
def test_an_unknown_name_lists_the_names(said):
  with pytest.raises(schema.ConfigError) as e:
    loading.load(said)
  assert repr(said) in str(e.value)
  assert 'desk, desk_code, ' in str(e.value) and 'turn_scaling' in str(e.value)


def test_a_path_that_is_in_the_checkout_only_leads_to_the_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = os.path.join('experiments', 'quickstart.py')
  with pytest.raises(schema.ConfigError, match='--config=quickstart is the config'):
    loading.load(path)
