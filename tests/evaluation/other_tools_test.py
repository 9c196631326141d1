"""The table of seen, renamed and unseen tools, by hand; files of new names."""

import json

import pytest

from agentflow_jax.agents import fakes, renaming
from agentflow_jax.agents.environments.desk import new_names
from agentflow_jax.agents.tools import base
from agentflow_jax.config import overrides, schema
from agentflow_jax.evaluation import other_tools
from agentflow_jax.rollouts import evaluated_items, intervals


def _item(task, reward, cause=None):
  return evaluated_items.Item(task, reward=reward, first_cause=cause)


_SEEN = [
  _item('a', 1.0),
  _item('a', 0.0, 'late'),
  _item('b', 1.0),
  _item('b', 1.0),
  _item('c', 0.0, 'selection'),
  _item('c', None),
  _item('u', 0.0, 'arguments'),
  _item('u', 1.0),
]


def test_rows_are_means_over_tasks_and_unseen_tools_are_a_row_of_their_own():
  again = [_item('a', 0.0, 'selection'), _item('u', 1.0)]
  found = other_tools.rows(_SEEN, again, ['u'])
  assert list(found) == ['seen', 'renamed', 'unseen']
  low, high = intervals.bootstrap_interval([0.5, 1.0, 0.0], seed=0)
  assert found['seen'] == {
    'tasks': 3,
    'success': 0.5,
    'ci_low': low,
    'ci_high': high,
    'rollouts': 6,
    'unscored': 1,
    'first_causes': {'late': 1, 'selection': 1},
  }
  # The same tasks as those of the row 'seen'.
  assert found['renamed']['success'] == 0.0 and found['renamed']['rollouts'] == 1
  assert found['unseen']['success'] == 0.5 and found['unseen']['tasks'] == 1
  lines = other_tools.table(found)
  assert lines[1].split()[:3] == ['seen', '3', '50.0%']
  assert lines[1].endswith('late 1, selection 1; 1 not scored')


def test_rows_without_items_are_left_out_and_one_without_scores_has_no_success():
  found = other_tools.rows([_item('a', None)], [], [])
  assert list(found) == ['seen'] and found['seen']['success'] is None
  assert other_tools.table(found)[1].split()[1:3] == ['0', '-']


def _config(**changes):
  return overrides.override(
    schema.Config(name='x'), [(k.replace('__', '.'), v) for k, v in changes.items()]
  )


def test_names_of_our_own_are_those_of_the_desk_where_there_is_one():
  assert other_tools.read('', _config()) is None
  names = other_tools.read('renamed', _config(agent__environment__kind='desk'))
  assert names.said().keys() == {*renaming.BUNDLED, *new_names.NEW_NAMES}
  card = base.Card('finish', 'Ends.', ())
  assert names.card(card).name == 'all_done'
  # A class of one's own may have a tool of this name, too.
  names = other_tools.read('renamed', _config(agent__environment__kind='a.py:B'))
  assert names.card(card).name.startswith('tool_')


def test_a_file_renames_what_it_names(tmp_path):
  path = tmp_path / 'names.json'
  path.write_text(json.dumps({'a': {'name': 'b', 'arguments': {'x': 'y'}}}))
  names = other_tools.read(str(path), _config())
  card = base.Card('a', 'Does.', (base.Argument('x', ''),))
  assert names.card(card).name == 'b' and names.card(card).arguments[0].name == 'y'
  other = base.Card('c', 'Does.', ())
  assert names.card(other) == other


@pytest.mark.parametrize(
  'text, match',
  [
    (None, "no file .*; 'renamed' for names of our own"),
    ('{', '--tools=.*JSON'),
    ('[]', 'must be an object'),
    ('{}', 'must be an object'),
    ('{"a": "b"}', '\'a\' needs a "name"'),
    ('{"a": {}}', '\'a\' needs a "name"'),
    ('{"a": {"name": "b", "why": 1}}', '\'a\' needs a "name"'),
    ('{"a": {"name": "b c"}}', "'a': a name has letters"),
  ],
)
def test_files_that_are_no_names_are_refused(tmp_path, text, match):
  path = tmp_path / 'names.json'
  if text is not None:
    path.write_text(text)
  with pytest.raises(schema.ConfigError, match=match):
    other_tools.read(str(path), _config())


def test_names_have_to_fit_the_tools():
  agent = fakes.make_agent(
    fakes.FakeLanguageModel({}),
    (fakes.make_tool(fakes.echo), fakes.make_tool(fakes.echo, 'python')),
  )
  for known, match in (
    ({'serch': renaming.NewName('x')}, "no tool 'serch'; there are search, python"),
    ({'search': renaming.NewName('python')}, "tools would be called 'python'"),
  ):
    with pytest.raises(schema.ConfigError, match=match):
      other_tools.renamed(agent, renaming.Names(known), 'names.json')
  # Names of our own may be of tools that this agent lacks.
  names = other_tools.read('renamed', _config(agent__environment__kind='desk'))
  assert list(other_tools.renamed(agent, names, 'renamed').tools) == [
    'look_up',
    'run_program',
  ]


def test_programs_have_no_calls_to_rename():
  with pytest.raises(schema.ConfigError, match='there are only programs'):
    other_tools.read(
      'renamed', _config(agent__plan_format='code', agent__code__sandbox='monty')
    )
