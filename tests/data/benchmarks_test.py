"""Benchmarks' files: what is read of each, and what is refused."""

import json
import pathlib

import pytest

from agentflow_jax.data import benchmarks

# Beside the repository where the project is developed; not part of it.
_SHARED = pathlib.Path(__file__).parents[3] / 'shared/data/benchmarks'


def _write(tmp_path, items, name='data.json'):
  path = tmp_path / name
  path.write_text(items if isinstance(items, str) else json.dumps(items))
  return str(path)


@pytest.mark.parametrize(
  'name, answer, expected',
  [
    ('bamboogle', ['James Madison', 'Madison'], ('James Madison', 'Madison')),
    ('2wiki', 'Manchester', ('Manchester',)),
    ('aime24', 33, ('33',)),
    ('gameof24', ['(1+1+1)×8'], ('(1+1+1)×8',)),
    ('gaia', 3.5, ('3.5',)),
  ],
)
def test_answers_of_each_type(tmp_path, name, answer, expected):
  path = _write(tmp_path, [{'query': 'q\n', 'answer': answer, 'pid': 7}])
  (task,), left_out = benchmarks.read(path, name)
  assert task.answers == expected and task.query == 'q\n' and left_out == 0
  assert task.id == f'{name}/000000' and task.tags == {'pid': '7', 'benchmark': name}
  assert task.reward == benchmarks.REWARDS[name]


def test_gaia_leaves_out_what_needs_a_file(tmp_path):
  path = _write(
    tmp_path,
    [
      {'query': 'a', 'answer': '1', 'Level': 1, 'file_name': 'x.xlsx'},
      {'query': 'b', 'answer': '2', 'Level': 3, 'file_name': ''},
      {'query': 'c', 'answer': '3', 'Level': 2, 'file_name': 'y.png'},
    ],
  )
  (task,), left_out = benchmarks.read(path, 'gaia')
  assert left_out == 2
  assert task.id == 'gaia/000001'
  assert task.tags == {'level': '3', 'benchmark': 'gaia'}


_CHOICES = ['A. one', 'B. two', 'C. three']


@pytest.mark.parametrize('given', [{}, {'answer_idx': 1}, {'answer_idx': 'B'}])
def test_gpqa_s_answer_is_the_letter_of_its_choice(tmp_path, given):
  item = {'query': 'q\nA. one', 'choices': _CHOICES, 'answer': 'B. two'}
  path = _write(tmp_path, [item | given])
  (task,), _ = benchmarks.read(path, 'gpqa')
  assert task.answers == ('B',) and task.reward == 'choice'


@pytest.mark.parametrize(
  'name, item, message',
  [
    ('aime24', 5, 'not an object'),
    ('aime24', {'answer': 5}, 'the field "query" is missing'),
    ('aime24', {'query': ' ', 'answer': 5}, '"query" must be a text'),
    ('aime24', {'query': 'q'}, 'the field "answer" is missing'),
    ('aime24', {'query': 'q', 'answer': True}, '"answer" must be'),
    ('bamboogle', {'query': 'q', 'answer': []}, '"answer" must be'),
    ('bamboogle', {'query': 'q', 'answer': [None]}, '"answer" must be'),
    ('gpqa', {'query': 'q', 'answer': 'B. two'}, '"choices" must be'),
    (
      'gpqa',
      {'query': 'q', 'answer': 'A. x', 'choices': ['x', 'y']},
      '"choices" must be',
    ),
    ('gpqa', {'query': 'q', 'answer': 'two', 'choices': _CHOICES}, "'two' is none of"),
    (
      'gpqa',
      {'query': 'q', 'answer': 'B. two', 'choices': _CHOICES, 'answer_idx': 'C'},
      'different choices',
    ),
  ],
)
def test_a_malformed_item_names_its_file_and_index(tmp_path, name, item, message):
  good = {'query': 'q', 'answer': 'A. one', 'choices': _CHOICES}
  path = _write(tmp_path, [good, item])
  with pytest.raises(benchmarks.MalformedItem) as error:
    benchmarks.load(tmp_path / 'data', path, name)
  assert str(error.value).startswith(f'{path}: item 1: ')
  assert message in str(error.value)


@pytest.mark.parametrize(
  'text, message', [('{', 'not JSON'), ('{}', 'a list'), ('[]', 'a list')]
)
def test_a_malformed_file_is_named(tmp_path, text, message):
  path = _write(tmp_path, text)
  with pytest.raises(benchmarks.MalformedItem, match=f'data.json: .*{message}'):
    benchmarks.load(tmp_path, path, 'aime24')


def test_a_benchmark_or_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(benchmarks.MalformedItem, match="'aime25'; there are 2wiki"):
    benchmarks.load(tmp_path, str(tmp_path), 'aime25')
  with pytest.raises(benchmarks.MalformedItem, match='no file .*gpqa/data.json'):
    benchmarks.load(tmp_path, str(tmp_path), 'gpqa')


def test_a_list_of_benchmarks(tmp_path):
  for name in ('medqa', 'aime24'):
    (tmp_path / name).mkdir()
    file = _write(tmp_path / name, [{'query': 'q', 'answer': 1}])
  assert benchmarks.chosen(str(tmp_path), 'all') == ['aime24', 'medqa']
  assert benchmarks.chosen(str(tmp_path), 'medqa,aime24') == ['medqa', 'aime24']
  assert benchmarks.chosen(file, 'gaia') == ['gaia']
  for said, path, message in (
    ('medqa,gpqa', tmp_path, 'gpqa: no file'),
    ('medqa,', tmp_path, "no benchmark ''"),
    ('medqa,medqa', tmp_path, 'twice'),
    ('medqa,aime24', file, 'is one file'),
    ('all', tmp_path / 'medqa', 'all: no NAME/data.json'),
  ):
    with pytest.raises(benchmarks.MalformedItem, match=message):
      benchmarks.chosen(str(path), said)


def test_a_data_set_is_built_once_a_file_and_anew_when_it_changes(tmp_path):
  path = _write(tmp_path, [{'query': f'q{i}', 'answer': i} for i in range(12)])
  data = tmp_path / 'data'
  tasks, left_out = benchmarks.load(data, path, 'aime24')
  assert [t.query for t in tasks] == [f'q{i}' for i in range(12)]
  assert tasks == benchmarks.read(path, 'aime24')[0] and left_out == 0
  assert benchmarks.load(data, path, 'aime24')[0] == tasks
  assert len(list(data.iterdir())) == 1
  with pytest.MonkeyPatch.context() as patch:  # A program with another rule.
    patch.setitem(benchmarks.REWARDS, 'aime24', 'f1')
    assert {t.reward for t in benchmarks.load(data, path, 'aime24')[0]} == {'f1'}
  assert len(list(data.iterdir())) == 1
  _write(tmp_path, [{'query': 'other', 'answer': 1}])
  (task,), _ = benchmarks.load(data, path, 'aime24')
  assert task.query == 'other'


@pytest.mark.parametrize(
  'name, count',
  [
    ('2wiki', 200),
    ('aime24', 30),
    ('amc23', 40),
    ('bamboogle', 125),
    ('gameof24', 300),
    ('hotpotqa', 100),
    ('medqa', 300),
    ('musique', 200),
  ],
)
def test_the_published_files_load(tmp_path, name, count):
  if not (_SHARED / name).exists():
    pytest.skip(f'no benchmark data at {_SHARED.parent.name}/{name}')
  tasks, left_out = benchmarks.load(tmp_path, str(_SHARED), name)
  assert len(tasks) == count and left_out == 0
  assert len({t.id for t in tasks}) == count


def test_writing_a_data_set_prints_nothing(tmp_path, capfd):
  file = tmp_path / 'data.json'
  file.write_text('[{"query": "q", "answer": "a"}]')
  benchmarks.load(str(tmp_path / 'out'), str(file), '2wiki')
  assert capfd.readouterr().out == ''
