"""Rows and task files of EnterpriseOps-Gym."""

import json

import pytest

from agentflow_jax.assembly import enterpriseops_data as data

_SERVER = {
  'mcp_server_name': 'gym-itsm',
  'mcp_server_url': 'http://localhost:8006',
  'seed_database_file': 'itsm/a.sql',
  'context': {'x-user': 7},
  'user_info': {'name': 'Marcus'},
  '_note': 'left out',
}
_VERIFIERS = [
  {
    'verifier_type': 'database_state',
    'name': 'state',
    'gym_name': 'gym-itsm',
    'description': 'd',
    'validation_config': {
      'query': 'select 1',
      'expected_value': 1,
      'comparison_type': 'equals',
    },
  },
  {
    'verifier_type': 'tool_execution',
    'validation_config': {'selected_tools': ['a'], 'minimum_tool_calls': 2},
  },
  {
    'verifier_type': 'response_check',
    'name': 'said',
    'validation_config': {'sql_query': 'select 2', 'comparison_prompt': 'names it'},
  },
]


def _row(**changes):
  """A row as the data set has it: two fields are text of JSON."""
  return {
    'task_id': 'task_1',
    'domain': 'itsm',
    'system_prompt': 'Policy.',
    'user_prompt': 'Do it.',
    'selected_tools': ['a', 'b'],
    'restricted_tools': None,
    'mcp_endpoint': '/mcp',
    'number_of_runs': 1,
    'reset_database_between_runs': True,
    'gym_servers_config': json.dumps([_SERVER]),
    'verifiers': json.dumps(_VERIFIERS),
  } | changes


def _file(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.mark.parametrize('mode', data.MODES)
def test_rows_of_every_mode(tmp_path, mode):
  (task,) = data.load(_file(tmp_path / mode / 'itsm.jsonl', _row()))
  assert task.id == f'{mode}/itsm/task_1' and task.query == 'Do it.'
  assert task.tags == {'domain': 'itsm', 'mode': mode} and task.reward == 'checks'
  world = task.world
  assert world.policy == 'Policy.' and world.feasible is None
  assert world.state == {
    'servers': [
      {
        'name': 'gym-itsm',
        'url': 'http://localhost:8006',
        'endpoint': '/mcp',
        'seed': 'itsm/a.sql',
        'context': {'x-user': '7'},
      }
    ],
    'selected': ['a', 'b'],
    'restricted': [],
  }
  state, calls, response = world.checks
  assert state.spec['gym_name'] == 'gym-itsm' and state.kind == 'state'
  assert (calls.name, calls.kind) == ('verifier_2', 'calls')
  assert 'gym_name' not in response.spec and response.kind == 'response'


def test_a_plan_is_kept_for_the_oracle_and_shown_nowhere_else(tmp_path):
  (task,) = data.load(_file(tmp_path / 'a.jsonl', _row(plan='1. a 2. b')))
  assert task.world.plan == '1. a 2. b' and '1. a' not in task.query + task.world.policy


def test_task_files_and_parquet_give_the_same(tmp_path):
  parquet = pytest.importorskip('pyarrow.parquet')
  import pyarrow

  row = _row()
  (expected,) = data.load(_file(tmp_path / 'oracle' / 'a.jsonl', row))
  table = pyarrow.Table.from_pylist([row])
  (tmp_path / 'p' / 'oracle').mkdir(parents=True)
  parquet.write_table(table, tmp_path / 'p' / 'oracle' / 'itsm.parquet')
  assert data.load(str(tmp_path / 'p')) == [expected]
  said = row | {
    'gym_servers_config': [_SERVER],
    'verifiers': _VERIFIERS,
    '_comment': 'x',
    'temperature': 0.0,
  }
  del said['task_id'], said['domain']
  place = tmp_path / 'f' / 'oracle' / 'itsm' / 'task_1.json'
  place.parent.mkdir(parents=True)
  place.write_text(json.dumps(said))
  assert data.load(str(tmp_path / 'f')) == data.load(str(place)) == [expected]
  # The published script writes the mode and the domain into the name.
  flat = tmp_path / 'plus_5_tools__itsm__task_1.json'
  flat.write_text(json.dumps(said | {'domain': 'itsm'}))
  (task,) = data.load(str(flat))
  assert task.tags['mode'] == 'plus_5_tools'


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'user_prompt': 3}, 'user_prompt has the wrong type'),
    ({'domain': '../../escaped'}, 'is no name'),
    ({'task_id': 'a/b'}, 'is no name'),
    ({'selected_tools': 'a'}, 'selected_tools has the wrong type'),
    ({'selected_tools': [1]}, 'selected_tools must be a list of texts'),
    ({'gym_servers_config': '[]'}, 'names no server'),
    ({'gym_servers_config': '{'}, 'gym_servers_config is no JSON'),
    ({'gym_servers_config': json.dumps({'a': 1})}, 'must be a list of objects'),
    (
      {'gym_servers_config': [{'mcp_server_name': 'x'}]},
      r"gym_servers_config\[0\] needs the text 'mcp_server_url'",
    ),
    ({'gym_servers_config': [_SERVER, _SERVER]}, 'two servers have the same name'),
    (
      {'gym_servers_config': [_SERVER | {'auth_config': {'token': 's'}}]},
      'auth_config holds a secret',
    ),
    ({'gym_servers_config': [_SERVER | {'context': 'x'}]}, 'context must be an object'),
    ({'verifiers': [{'verifier_type': 'magic'}]}, r'verifiers\[0\]: verifier_type'),
    (
      {
        'verifiers': [
          _VERIFIERS[1],
          {'verifier_type': 'database_state', 'validation_config': {'query': 'q'}},
        ]
      },
      r"verifiers\[1\]: check 'verifier_2' .* needs 'expected_value'",
    ),
    (
      {
        'verifiers': [
          {
            **_VERIFIERS[0],
            'validation_config': {
              'query': 'q',
              'expected_value': 1,
              'comparison_type': 'like',
            },
          }
        ]
      },
      'comparison_type must be one of',
    ),
  ],
)
def test_malformed_rows_name_file_row_and_field(tmp_path, changes, match):
  path = _file(tmp_path / 'a.jsonl', _row(task_id='x'), _row(**changes))
  with pytest.raises(data.MalformedTask, match=rf'a\.jsonl:2: .*{match}'):
    data.load(path)


def test_other_mistakes_are_named(tmp_path):
  row = _row()
  del row['system_prompt']
  with pytest.raises(data.MalformedTask, match='no field "system_prompt"'):
    data.load(_file(tmp_path / 'a.jsonl', row))
  with pytest.raises(data.MalformedTask, match='a.jsonl:2: the task .* came before'):
    data.load(_file(tmp_path / 'a.jsonl', _row(), _row()))
  with pytest.raises(data.MalformedTask, match='no file'):
    data.load(str(tmp_path / 'missing.jsonl'))
  place = tmp_path / 'b.json'
  place.write_text(json.dumps(_row(other=1)))
  with pytest.raises(data.MalformedTask, match="b.json: unknown field 'other'"):
    data.load(str(place))
  place.write_text('[]')
  with pytest.raises(data.MalformedTask, match='b.json: not an object'):
    data.load(str(place))
  place.write_text('{')
  with pytest.raises(data.MalformedTask, match='b.json'):
    data.load(str(place))
