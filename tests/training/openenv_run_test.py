"""A run on a server of OpenEnv."""

import json

import pytest

from agentflow_jax.assembly import openenv_tasks
from agentflow_jax.config import overrides, schema
from agentflow_jax.training import run
from tests.agents.environments.openenv import openenv_server
from tests.config import mini


def _config(tmp_path, url, **changes):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(
    ''.join(
      json.dumps(row) + '\n' for row in openenv_tasks.rows('Count.', ['start=0:2'])
    )
  )
  settings = {
    'task_set.train': str(rows),
    'task_set.evaluation': str(rows),
    'task_set.reward': 'environment',
    'agent.environment.kind': 'openenv',
    'agent.environment.url': url,
    'agent.environment.capacity': '8',
    'train.concurrent_rollouts': '8',
    'agent.tools.enabled': '',
    'agent.tools.corpus': '',
    'agent.executor.backend': 'fields',
    'agent.verifier.backend': 'world',
    'evaluation.every': '0',
  }
  base = mini.config(tmp_path / 'in', steps=1, queries_per_step=2, group_size=2)
  return overrides.override(base, list((settings | changes).items()))


@pytest.mark.slow
def test_a_run_trains_on_a_server(tmp_path):
  with openenv_server.OpenEnvServer(capacity=8) as server:
    run.train(_config(tmp_path, server.url), str(tmp_path / 'out'), quiet=True)
    assert {row['start'] for row in server.resets} == {0, 1, 2}
    assert 1 < server.peak <= 8
  final = json.loads((tmp_path / 'out' / 'evaluations' / 'final.json').read_text())
  assert final['world']['rollouts'] == final['items_scored'] == 3
  (line,) = (tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(line)['rollouts/scored'] == 4


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'agent.environment.url': ''}, 'set agent.environment.url'),
    ({'agent.environment.url': 'host:8000'}, 'must begin with http'),
    ({'agent.environment.capacity': '2'}, 'set train.concurrent_rollouts=2'),
    ({'agent.environment.url': 'http://127.0.0.1:9'}, 'ConnectionRefused'),
    ({'agent.environment.concurrency': '3'}, 'agent.environment.concurrency'),
    ({'agent.environment.seeds': 'x'}, 'agent.environment.seeds'),
  ],
)
def test_mistakes_at_start_name_the_remedy(tmp_path, changes, match):
  with pytest.raises(schema.ConfigError, match=match):
    config = _config(tmp_path, 'http://127.0.0.1:9', **changes)
    run.train(config, str(tmp_path / 'out'), quiet=True)
