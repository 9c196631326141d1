"""`evaluate --benchmark=enterpriseops` against local servers."""

import dataclasses
import json

import pytest

from agentflow_jax.config import loading, overrides, schema
from agentflow_jax.evaluation import command
from tests.agents.endpoints import http_server
from tests.agents.environments.enterpriseops import gym_server
from tests.config import mini

_CLOSED = {
  'verifier_type': 'database_state',
  'name': 'closed',
  'gym_name': 'gym',
  'validation_config': {
    'query': "select count(*) from ticket where id = 1 and state = 'closed'",
    'expected_value': 1,
    'comparison_type': 'equals',
  },
}
_SAID = [
  'Sub-Goal: close it\nContext: 1\nTool Name: close_ticket',
  '{"name": "close_ticket", "arguments": {"id": 1}}',
  'It is done.\nConclusion: STOP',
  'Ticket 1 is closed.',
]


def _config(tmp_path, endpoint, gym, name='enterpriseops', **changes):
  (tmp_path / 'a.sql').write_text(gym_server.SQL)
  base = loading.load(str(mini.ROOT / 'experiments' / f'{name}.py'))
  return overrides.override(
    base,
    list(
      {
        'agent.environment.seeds': str(tmp_path),
        'agent.environment.servers': f'gym={gym}',
        'agent.endpoint.base_url': endpoint,
        'agent.endpoint.model': 'm',
        # One request after the other: the endpoint answers from a list.
        'train.concurrent_rollouts': '1',
        'agent.analyst.backend': 'none',
        **changes,
      }.items()
    ),
  )


def _rows(tmp_path):
  server = {
    'mcp_server_name': 'gym',
    'mcp_server_url': 'http://localhost:8006',
    'seed_database_file': 'a.sql',
    'context': {'user_id': 'U1'},
  }
  row = {
    'domain': 'itsm',
    'system_prompt': 'Close what is done.',
    'user_prompt': 'Close ticket 1.',
    'selected_tools': ['close_ticket'],
    'gym_servers_config': [server],
    'plan': 'First look, then close.',
  }
  wrong = _CLOSED | {'gym_name': 'elsewhere', 'name': 'other'}
  for mode, verifiers in (('oracle', [_CLOSED]), ('plus_5_tools', [_CLOSED, wrong])):
    place = tmp_path / 'rows' / mode / 'itsm.jsonl'
    place.parent.mkdir(parents=True)
    place.write_text(
      json.dumps(row | {'task_id': 'task_1', 'verifiers': json.dumps(verifiers)}) + '\n'
    )
  return str(tmp_path / 'rows')


def _options(data_dir, **more):
  return command.EvaluateOptions(benchmark='enterpriseops', data_dir=data_dir, **more)


def test_scores_as_published_and_strict_stand_side_by_side(tmp_path):
  replies = [http_server.Reply(body=http_server.completion(text)) for text in _SAID * 2]
  with http_server.Server(*replies) as endpoint, gym_server.GymServer() as gym:
    config = _config(tmp_path, endpoint.url, gym.url)
    said = command.evaluate(config, str(tmp_path / 'out'), _options(_rows(tmp_path)))
    assert not gym.databases and len(set(gym.deleted)) == 2
  found = json.loads(
    (tmp_path / 'out' / 'evaluations' / 'enterpriseops.json').read_text()
  )
  scores = found['enterpriseops']
  assert list(scores) == ['all', 'oracle/itsm', 'plus_5_tools/itsm']
  assert scores['all']['parity']['success'] == 1.0
  assert scores['all']['strict']['success'] == 0.5 == found['accuracy']
  assert 'plus_5_tools/itsm' in said and 'failed first by: wrong' not in said
  place = tmp_path / 'out' / 'enterpriseops' / 'enterpriseops'
  assert str(place) in said
  (file,) = (place / 'oracle' / 'itsm').iterdir()
  assert json.loads(file.read_text())['statistics']['overall_success_rate'] == 1.0
  prompts = [json.dumps(body) for _, _, body in endpoint.requests]
  assert all('Close what is done.' in p and 'af_' not in p for p in prompts)
  assert not any('slow' in p for p in prompts), 'a tool that is not selected'


def _calling(*calls):
  """A response that calls tools natively."""
  made = [
    {
      'id': f'c{i}',
      'type': 'function',
      'function': {'name': name, 'arguments': json.dumps(arguments)},
    }
    for i, (name, arguments) in enumerate(calls)
  ]
  message = {'role': 'assistant', 'content': None, 'tool_calls': made}
  choice = {'message': message, 'finish_reason': 'tool_calls'}
  return http_server.Reply(body=json.dumps({'choices': [choice]}).encode())


@pytest.mark.parametrize(
  'analyst, plan',
  [
    ('none', ''),
    ('oracle', 'First look, then close.'),
    ('endpoint', 'Close the one that works.'),
  ],
)
def test_the_loop_of_the_publication_with_each_plan(tmp_path, analyst, plan):
  """One model, native calls, until a response has none; the plan is in the query."""
  said = [
    _calling(('close_ticket', {'id': 99}), ('close_ticket', {'id': 1})),
    http_server.Reply(body=http_server.completion('Ticket 1 is closed.')),
  ]
  if analyst == 'endpoint':
    said.insert(0, http_server.Reply(body=http_server.completion(plan)))
  with http_server.Server(*said) as endpoint, gym_server.GymServer() as gym:
    config = _config(
      tmp_path,
      endpoint.url,
      gym.url,
      'enterpriseops_tool_calls',
      **{'agent.analyst.backend': analyst},
    )
    options = _options(_rows(tmp_path), limit=1)
    command.evaluate(config, str(tmp_path / 'out'), options)
    assert not gym.databases and len(gym.calls()) == 2
  found = json.loads(
    (tmp_path / 'out' / 'evaluations' / 'enterpriseops.json').read_text()
  )
  assert found['enterpriseops']['oracle/itsm']['strict']['success'] == 1.0
  requests = [body for _, _, body in endpoint.requests]
  assert len(requests) == len(said)
  first, last = requests[-2:]
  assert [tool['function']['name'] for tool in first['tools']] == ['close_ticket']
  system, query = first['messages']
  assert (system['role'], system['content']) == ('system', 'Close what is done.')
  assert query['role'] == 'user' and query['content'].startswith('Close ticket 1.')
  assert query['content'].removeprefix('Close ticket 1.').strip().endswith(plan)
  assert ('First look' in query['content']) == (analyst == 'oracle')
  results = [m['content'] for m in last['messages'] if m['role'] == 'tool']
  assert results == ['Error: Ticket not found: 99', 'closed']
  assert not any('af_' in json.dumps(body) for body in requests)


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'agent.environment.seeds': '/nowhere'}, 'unpack gym_dbs.zip'),
    ({'agent.environment.servers': 'gym'}, 'write NAME=URL'),
    (
      {'agent.environment.servers': 'gim=http://127.0.0.1:9'},
      "no task has a server 'gim'; there are gym",
    ),
    ({'agent.environment.seconds': '0'}, 'seconds must be above 0'),
    ({'agent.environment.faults': '0.1'}, 'agent.environment.faults'),
    (
      {
        'agent.environment.judge.base_url': 'http://127.0.0.1:9',
        'agent.environment.judge.model': 'm',
      },
      'no task has a check of kind',
    ),
  ],
)
def test_mistakes_at_start_name_the_remedy(tmp_path, changes, match):
  with pytest.raises(schema.ConfigError, match=match):
    config = _config(tmp_path, 'http://127.0.0.1:9', 'http://127.0.0.1:9', **changes)
    command.evaluate(config, str(tmp_path / 'out'), _options(_rows(tmp_path)))


def test_rows_are_needed(tmp_path):
  config = _config(tmp_path, 'http://127.0.0.1:9', 'http://127.0.0.1:9')
  with pytest.raises(schema.ConfigError, match='task_set.evaluation: give the rows'):
    command.evaluate(config, str(tmp_path / 'out'), _options(''))
  wrong = dataclasses.replace(
    config, task_set=dataclasses.replace(config.task_set, kind='desk')
  )
  with pytest.raises(schema.ConfigError, match='set agent.environment.kind=desk'):
    command.evaluate(wrong, str(tmp_path / 'out'), command.EvaluateOptions())
