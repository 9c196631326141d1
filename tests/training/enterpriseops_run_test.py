"""A run on servers that speak the wire of EnterpriseOps-Gym."""

import dataclasses
import json

import pytest

from agentflow_jax.config import schema
from agentflow_jax.training import run
from tests.agents.environments.enterpriseops import gym_server
from tests.config import mini


def _rows(path, numbers):
  server = {
    'mcp_server_name': 'gym',
    'mcp_server_url': 'http://localhost:8006',
    'seed_database_file': 'a.sql',
    'context': {},
  }
  check = {
    'verifier_type': 'database_state',
    'name': 'closed',
    'validation_config': {
      'query': "select count(*) from ticket where state = 'closed'",
      'expected_value': 1,
      'comparison_type': 'equals',
    },
  }
  rows = [
    {
      'task_id': f'task_{i}',
      'domain': 'itsm',
      'system_prompt': 'Be brief.',
      'user_prompt': f'Close ticket 1, please, for the time {i}.',
      'selected_tools': ['close_ticket'],
      'gym_servers_config': [server],
      'verifiers': [check],
    }
    for i in numbers
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.mark.slow
@pytest.mark.parametrize('plan_format', ['fields', 'tool_calls'])
def test_a_run_trains_on_servers(tmp_path, plan_format):
  """With a plan that the planner's model before training writes."""
  (tmp_path / 'a.sql').write_text(gym_server.SQL)
  base = mini.config(tmp_path / 'in', steps=1, queries_per_step=2, group_size=2)
  modules = {}
  if plan_format == 'fields':
    modules = {
      'executor': schema.ModuleConfig('fields'),
      'verifier': schema.ModuleConfig('world'),
    }
  with gym_server.GymServer() as gym:
    config = dataclasses.replace(
      base,
      task_set=schema.TaskSetConfig(
        kind='enterpriseops',
        train=_rows(tmp_path / 'train.jsonl', range(4)),
        evaluation=_rows(tmp_path / 'test.jsonl', range(4, 10)),
        validation_items=3,
        test_items=3,
      ),
      agent=schema.AgentConfig(
        plan_format=plan_format,
        analyst=schema.ModuleConfig('frozen', schema.SamplingSpec(max_new_tokens=4)),
        rollout=schema.RolloutConfig(max_turns=2),
        tools=schema.ToolsConfig(enabled=()),
        environment=schema.EnvironmentConfig(
          kind='enterpriseops', seeds=str(tmp_path), servers=(f'gym={gym.url}',)
        ),
        **modules,
      ),
      planner=dataclasses.replace(
        base.planner,
        sampling=schema.SamplingSpec(max_new_tokens=8),
        prompt=schema.PromptConfig(system='Act.'),
      ),
      engine=dataclasses.replace(base.engine, max_new_tokens=8),
    )
    run.train(config, str(tmp_path / 'out'), quiet=True)
    # Four rollouts of the step, and those of the evaluations.
    assert len(set(gym.deleted)) > 4 and not gym.databases
  final = json.loads((tmp_path / 'out' / 'evaluations' / 'final.json').read_text())
  assert final['world']['rollouts'] == final['items_scored'] > 0
  said = final['mistakes']
  causes = sum(said['first_causes'].values())
  assert said['rollouts'] == said['unscored'] + said['success'] + causes
  (line,) = (tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(line)['rollouts/scored'] == 4
