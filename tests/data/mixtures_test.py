"""Sources of the mix: what is read, in which order, and what is refused."""

import json
import sys

import pyarrow
from pyarrow import parquet
import pytest

from agentflow_jax.data import mixtures
from agentflow_jax.data import rows

_NQ = [
  {'id': 'train_0', 'question': 'When?', 'golden_answers': ['1972', 'in 1972']},
  {'id': 'train_1', 'question': 'Who\u2028is it?', 'golden_answers': ['Zoë']},
]
_MATH = [
  {'question': 'Half?', 'final_answer': '\\dfrac{1}{2}', 'r1_solution_1': 'x'},
  {'question': 'Limit?', 'final_answer': '\\text{Does not exist}', 'r1': 'y'},
]


def _jsonl(path, items):
  path.write_text(''.join(json.dumps(i, ensure_ascii=False) + '\n' for i in items))
  return str(path)


def _parquet(path, items):
  parquet.write_table(pyarrow.Table.from_pylist(items), path)
  return str(path)


def _read(path, source):
  return list(mixtures.read(str(path), source))


def test_natural_questions(tmp_path):
  one, two = _read(_jsonl(tmp_path / 'nq.jsonl', _NQ), 'natural_questions')
  assert one.id == 'natural_questions/0000000' and one.query == 'When?'
  assert one.answers == ('1972', 'in 1972') and one.reward == 'exact_match'
  assert one.tags == {'source': 'natural_questions', 'id': 'train_0'}
  assert two.id == 'natural_questions/0000001' and two.answers == ('Zoë',)
  assert two.query == 'Who\u2028is it?'  # One row, whatever lines end with.


def test_deepmath_s_prose_is_matched_as_text(tmp_path):
  one, two = _read(_jsonl(tmp_path / 'dm.jsonl', _MATH), 'deepmath')
  assert one.answers == ('\\dfrac{1}{2}',) and one.reward == 'symbolic'
  assert two.answers == ('Does not exist',) and two.reward == 'exact_match'
  assert one.tags == {'source': 'deepmath'}


@pytest.mark.parametrize(
  'answer', ['Yes', '\\text{Yes}', 'x + y', 'S_3', '2 + 2', '\\infty', 'n']
)
def test_what_can_be_mathematics_is_compared_as_that(tmp_path, answer):
  row = {'question': 'q', 'final_answer': answer}
  (task,) = _read(_jsonl(tmp_path / 'dm.jsonl', [row]), 'deepmath')
  assert task.reward == 'symbolic' and task.answers == (answer,)


@pytest.mark.parametrize(
  'source, items', [('natural_questions', _NQ), ('deepmath', _MATH)]
)
def test_parquet_and_jsonl_are_the_same_tasks(tmp_path, source, items):
  lines = _jsonl(tmp_path / 'a.jsonl', items)
  table = _parquet(tmp_path / 'a.parquet', items)
  expected = _read(lines, source)
  assert len(expected) == 2 and _read(table, source) == expected
  assert mixtures.load(tmp_path / 'data', lines, source) == expected
  assert mixtures.load(tmp_path / 'data', table, source) == expected


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
  for i in (1, 0, 2):
    rows_ = [{'question': f'q{i}{j}', 'final_answer': '1'} for j in range(2)]
    _parquet(tmp_path / f'train-{i}.parquet', rows_)
  expected = ['q00', 'q01', 'q10', 'q11', 'q20', 'q21']
  for path in (
    tmp_path,
    f'{tmp_path}/train-*.parquet',
    ','.join(f'{tmp_path}/train-{i}.parquet' for i in range(3)),
  ):
    tasks = _read(path, 'deepmath')
    assert [t.query for t in tasks] == expected
    assert [t.id[-1] for t in tasks] == list('012345')
  # A list says its own order.
  path = f'{tmp_path}/train-2.parquet,{tmp_path}/train-0.parquet'
  assert [t.query for t in _read(path, 'deepmath')] == ['q20', 'q21', 'q00', 'q01']


def test_a_data_set_is_in_order_beyond_a_chunk_and_built_anew(tmp_path):
  items = [{'question': f'q{i}', 'final_answer': str(i)} for i in range(2500)]
  path = _jsonl(tmp_path / 'a.jsonl', items)
  tasks = mixtures.load(tmp_path / 'data', path, 'deepmath')
  assert [t.answers[0] for t in tasks] == [str(i) for i in range(2500)]
  assert mixtures.load(tmp_path / 'data', path, 'deepmath') == tasks
  assert len(list((tmp_path / 'data').iterdir())) == 1
  with pytest.MonkeyPatch.context() as patch:  # A program that reads otherwise.
    column, _ = mixtures.SOURCES['deepmath']
    patch.setitem(mixtures.SOURCES, 'deepmath', (column, lambda row: (('x',), 'f1')))
    patch.setattr(mixtures, '_VERSION', 0)
    assert mixtures.load(tmp_path / 'data', path, 'deepmath')[0].reward == 'f1'
  assert mixtures.load(tmp_path / 'data', path, 'deepmath') == tasks
  _jsonl(tmp_path / 'a.jsonl', items[:1])
  assert len(mixtures.load(tmp_path / 'data', path, 'deepmath')) == 1


_GOOD = {'question': 'q', 'golden_answers': ['a'], 'final_answer': '1'}


@pytest.mark.parametrize(
  'source, change, message',
  [
    ('deepmath', {'question': ' '}, '"question" must be a text'),
    ('deepmath', {'question': None}, '"question" must be a text'),
    ('deepmath', {'final_answer': ''}, '"final_answer" must be a text'),
    ('deepmath', {'final_answer': 5}, '"final_answer" must be a text'),
    ('natural_questions', {'golden_answers': []}, 'must be a list of texts'),
    ('natural_questions', {'golden_answers': 'a'}, 'must be a list of texts'),
    ('natural_questions', {'golden_answers': [' ']}, 'a list of texts'),
    ('natural_questions', {'golden_answers': [1]}, 'a list of texts'),
  ],
)
def test_a_malformed_row_names_its_file_and_row(tmp_path, source, change, message):
  path = _jsonl(tmp_path / 'a.jsonl', [_GOOD, _GOOD | change])
  with pytest.raises(rows.MalformedRow) as error:
    mixtures.load(tmp_path / 'data', path, source)
  assert str(error.value).startswith(f'{path}:2: ')
  assert message in str(error.value)
  # Mended, it loads: nothing of the broken one is left in the way.
  _jsonl(tmp_path / 'a.jsonl', [_GOOD, _GOOD])
  assert len(mixtures.load(tmp_path / 'data', path, source)) == 2


def test_a_malformed_row_of_parquet_is_named(tmp_path):
  bad = _parquet(
    tmp_path / 'a.parquet', [_GOOD, _GOOD, {'question': 'q', 'final_answer': None}]
  )
  with pytest.raises(rows.MalformedRow, match='a.parquet:3: "final_answer"'):
    _read(bad, 'deepmath')


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"question"', 'a.jsonl:1: not JSON'),
    ('\n[1]\n', 'a.jsonl:2: not an object'),
    ('{"question": "q"}', 'a.jsonl:1: no field "final_answer"'),
    ('\n', 'a.jsonl: holds no row'),
    ('', 'a.jsonl: holds no row'),
  ],
)
def test_a_malformed_line_is_named(tmp_path, text, message):
  (tmp_path / 'a.jsonl').write_text(text)
  with pytest.raises(rows.MalformedRow, match=message):
    mixtures.load(tmp_path / 'data', str(tmp_path / 'a.jsonl'), 'deepmath')


def test_a_malformed_parquet_file_is_named(tmp_path):
  lacking = _parquet(tmp_path / 'a.parquet', [{'question': 'q', 'other': 1}])
  with pytest.raises(
    rows.MalformedRow,
    match='a.parquet: no column "final_answer"; there are question, other',
  ):
    _read(lacking, 'deepmath')
  _parquet(tmp_path / 'b.parquet', [_GOOD] * 50)
  whole = (tmp_path / 'b.parquet').read_bytes()
  for content in (b'', b'not it at all', whole[: len(whole) // 2]):
    (tmp_path / 'b.parquet').write_bytes(content)
    with pytest.raises(rows.MalformedRow, match='b.parquet: not parquet'):
      _read(tmp_path / 'b.parquet', 'deepmath')
  empty = pyarrow.Table.from_pylist([_GOOD]).slice(0, 0)
  parquet.write_table(empty, tmp_path / 'b.parquet')
  with pytest.raises(rows.MalformedRow, match='b.parquet: holds no row'):
    _read(tmp_path / 'b.parquet', 'deepmath')


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
  path = _parquet(tmp_path / 'a.parquet', [_GOOD])
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(rows.MalformedRow, match='pip install pyarrow'):
    _read(path, 'deepmath')


def test_a_path_that_cannot_be_read_is_named(tmp_path):
  (tmp_path / 'a.csv').touch()
  (tmp_path / 'none').mkdir()
  (tmp_path / 'both').mkdir()
  for name in ('a.jsonl', 'a.parquet'):
    (tmp_path / 'both' / name).touch()
  for path, message in (
    ('gone.jsonl', 'no file .*gone.jsonl'),
    ('a.csv', 'a.csv: needs a file .jsonl or .parquet'),
    ('none', 'none: no .jsonl or .parquet in this directory'),
    ('both', 'both: holds .jsonl and .parquet'),
    ('x*.jsonl', r'no file matches .*x\*.jsonl'),
    ('both/a.*,' + str(tmp_path / 'both/a.jsonl'), 'comes twice'),
    ('both/a.jsonl,', 'a path of rows is empty'),
  ):
    with pytest.raises(rows.MalformedRow, match=message):
      rows.locate(f'{tmp_path}/{path}')
  with pytest.raises(rows.MalformedRow, match="'nq'; there are natural_quest"):
    mixtures.load(tmp_path, 'x', 'nq')
