"""What can be served to clients of OpenEnv, and what a mistake says."""

import asyncio
import json

import pytest

from agentflow_jax.assembly import served_worlds
from agentflow_jax.config import loading, overrides, schema
from agentflow_jax.data import desk

_CLASS = '''
class Meter:
  def reset(self, start: int): self.n = start

  def {tool}(self, n: int) -> str:
    """Adds."""
    return str(n)

  def verify(self) -> float: return 1.0
'''


def _own(tmp_path, tool='add', **changes):
  (tmp_path / 'meter.py').write_text(_CLASS.replace('{tool}', tool))
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(
    ''.join(json.dumps({'query': f'q{i}', 'start': i}) + '\n' for i in range(3))
  )
  kind = f'{tmp_path}/meter.py:Meter'
  settings = {
    'task_set.kind': 'jsonl',
    'task_set.train': str(rows),
    'task_set.evaluation': str(rows),
    'task_set.reward': 'environment',
    'agent.environment.kind': kind,
    'agent.tools.enabled': '',
  } | changes
  config = schema.Config(name='own')
  return overrides.override(config, list(settings.items())), kind


def test_a_class_of_ones_own_with_its_rows(tmp_path):
  served = served_worlds.load(*_own(tmp_path), 'train', str(tmp_path))
  assert [task.query for task in served.tasks] == ['q0', 'q1', 'q2']
  assert served.environment.name == 'Meter'
  asyncio.run(served.close())


def test_the_desk_needs_no_config(tmp_path, monkeypatch):
  sizes = {s: desk.Size(1, 4) for s in desk.SPLITS}
  write = desk.write
  monkeypatch.setattr(desk, 'write', lambda d, p, t: write(d, p, t, sizes))
  config = loading.of_environment('desk', [('task_set.tier', 'plain')])
  served = served_worlds.load(config, 'desk', 'test', str(tmp_path))
  assert len(served.tasks) == 4 and served.environment.version == '1/plain'
  with pytest.raises(schema.ConfigError, match='give the --config'):
    loading.of_environment('other.py:Own')


@pytest.mark.parametrize(
  'changes, kind, match',
  [
    ({}, 'desk', "has agent.environment.kind='.*meter.py:Meter'"),
    ({'task_set.train': ''}, None, '--split=train: the config has no such tasks'),
    ({'tool': 'step'}, None, "cannot be called 'step'"),
    ({'task_set.reward': 'f1'}, None, 'needs answers'),
    ({'agent.environment.kind': 'openenv'}, 'openenv', 'is on servers already'),
    ({'agent.environment.faults': '0.1'}, None, 'agent.environment.faults'),
  ],
)
def test_mistakes_name_the_remedy(tmp_path, changes, kind, match):
  config, own = _own(tmp_path, **changes)
  with pytest.raises(schema.ConfigError, match=match):
    served_worlds.load(config, kind or own, 'train', str(tmp_path))
