"""What is in a wheel, and that it finds its configs outside of a checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import agentflow_jax

_ROOT = pathlib.Path(__file__).parents[1]
_RESOLVE = """
import os, pathlib
import agentflow_jax
from agentflow_jax.config import loading, shipped
assert shipped.names()
for name in shipped.names():
  config = loading.load(name)
  for path in (
      config.planner.directory, config.task_set.train, config.task_set.evaluation,
      config.agent.tools.corpus,
  ):
    assert not path or not os.path.isabs(path) or os.path.exists(path), path
weights = pathlib.Path(loading.load('quickstart').planner.directory)
assert (weights / 'model.safetensors').is_file(), weights
print(agentflow_jax.__file__, weights, agentflow_jax.__version__, sep='\\n')
"""


@pytest.fixture(scope='module', name='wheel')
def _wheel(tmp_path_factory):
  """A wheel of a copy, so that no earlier build of the checkout is in it."""
  source = tmp_path_factory.mktemp('source')
  for name in ('agentflow_jax', 'experiments'):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(_ROOT / name, source / name, ignore=ignored)
  for name in ('LICENSE', 'README.md', 'pyproject.toml', 'requirements.txt'):
    shutil.copy(_ROOT / name, source)
  made = tmp_path_factory.mktemp('dist')
  subprocess.run(
    [
      sys.executable,
      '-m',
      'pip',
      'wheel',
      '--quiet',
      '--no-deps',
      f'--wheel-dir={made}',
      str(source),
    ],
    check=True,
  )
  (wheel,) = made.glob('*.whl')
  return wheel


def test_it_holds_the_package_and_the_configs_with_their_files(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = {n for n in archive.namelist() if '.dist-info/' not in n}
    (scripts,) = [n for n in archive.namelist() if n.endswith('entry_points.txt')]
    commands = archive.read(scripts).decode()
  package, shipped = _ROOT / 'agentflow_jax', _ROOT / 'experiments'
  wanted = {p.relative_to(_ROOT).as_posix() for p in package.rglob('*.py')}
  wanted |= {'agentflow_jax/py.typed'}
  wanted |= {
    f'agentflow_jax/_experiments/{p.relative_to(shipped).as_posix()}'
    for pattern in (
      '*.py',
      '*_planner/*',
      'own_tasks/*.jsonl',
      'own_tasks/*/*.txt',
      'served_agents/*.py',
    )
    for p in shipped.glob(pattern)
  }
  assert names == wanted
  assert f'-{agentflow_jax.__version__}-' in wheel.name
  for command in (
    'train',
    'evaluate',
    'solve',
    'serve',
    'export',
    'preflight',
    'trajectories',
    'openenv-tasks',
  ):
    assert f'agentflow-{command} = ' in commands


def test_every_config_is_found_by_name_outside_of_a_checkout(wheel, tmp_path):
  site, elsewhere = tmp_path / 'site', tmp_path / 'elsewhere'
  elsewhere.mkdir()
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(site)
  done = subprocess.run(
    [sys.executable, '-c', _RESOLVE],
    cwd=elsewhere,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'PYTHONPATH': str(site)},
  )
  assert done.returncode == 0, done.stderr
  file, weights, version = done.stdout.splitlines()
  assert file == str(site / 'agentflow_jax' / '__init__.py')
  assert weights == str(site / 'agentflow_jax' / '_experiments' / 'geohop_planner')
  assert version == agentflow_jax.__version__
