"""Task files for servers of OpenEnv."""

import json

import pytest

from agentflow_jax.assembly import openenv_tasks
from agentflow_jax.config import schema
from tests.agents.environments.openenv import openenv_server


def test_each_combination_is_a_row():
  found = openenv_tasks.rows('Do it.', ['seed=0:2', 'level=easy|3'])
  assert found[:2] == [
    {'id': '0-easy', 'query': 'Do it.', 'seed': 0, 'level': 'easy'},
    {'id': '0-3', 'query': 'Do it.', 'seed': 0, 'level': 3},
  ]
  assert len({row['id'] for row in found}) == 6
  assert openenv_tasks.rows('Do it.', []) == [{'id': 'task', 'query': 'Do it.'}]


@pytest.mark.parametrize(
  'query, said, match',
  [
    ('q', 'seed', 'write NAME=FIRST:LAST'),
    ('q', '=1', 'write NAME'),
    ('q', 'query=1', 'none of query'),
    (' ', 'seed=1', '--query'),
  ],
)
def test_other_forms_are_refused(query, said, match):
  with pytest.raises(schema.ConfigError, match=match):
    openenv_tasks.rows(query, [said])


def test_arguments_that_a_server_drops_are_named(tmp_path):
  path = tmp_path / 'tasks.jsonl'
  made = openenv_tasks.rows('Count.', ['start=0:3', 'color=red|blue'])
  with openenv_server.OpenEnvServer('plain', capacity=1) as server:
    tried = openenv_tasks.write(str(path), server.url, made, 5.0)
  assert tried == openenv_tasks.Tried(('start',), ('color',), 'plain', ('act',))
  assert [json.loads(line) for line in path.read_text().splitlines()] == made
  with pytest.raises(schema.ConfigError, match='ConnectionRefused'):
    openenv_tasks.write(str(path), server.url, made, 5.0)
