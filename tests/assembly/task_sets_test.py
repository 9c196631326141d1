import dataclasses
import json

import pytest

from agentflow_jax.assembly import task_sets
from agentflow_jax.config import overrides, schema


def _write(tmp_path, text):
  path = tmp_path / 'mine.jsonl'
  path.write_text(text)
  return str(path)


def test_a_user_s_tasks_need_no_code(tmp_path):
  path = _write(
    tmp_path,
    '{"query": "1+1?", "answer": 2}\n\n'
    '{"id": "b", "query": "Who?", "answer": ["Ann", "Ann B."]}\n',
  )
  one, two = task_sets.read_jsonl(path, 'f1')
  assert one.answers == ('2',) and one.id == 'mine/000001'
  assert two.answers == ('Ann', 'Ann B.') and two.id == 'b'
  assert one.reward == 'f1' and one.tags == {}


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"query": "a", "answer": "b"}\n{"query"', 'mine.jsonl:2: not JSON'),
    ('{"answer": "b"}\n', 'mine.jsonl:1: the field "query" is missing'),
    ('{"query": 3, "answer": "b"}\n', 'mine.jsonl:1: "query" must be text'),
    ('{"query": "a"}\n', 'mine.jsonl:1: the field "answer" is missing'),
    ('[1]\n', 'mine.jsonl:1: a row must be a JSON object'),
    ('{"query": "a", "answer": []}\n', '"answer" must be'),
    ('{"query": "a", "answer": true}\n', '"answer" must be'),
    ('{"query": "a", "answer": {"x": 1}}\n', '"answer" must be'),
    (
      '{"id": "x", "query": "a", "answer": "b"}\n' * 2,
      "mine.jsonl:2: the id 'x' came before",
    ),
    ('\n', 'holds no task'),
    (
      '{"id": "x", "query": "a\\ud83d", "answer": "b"}\n',
      'mine.jsonl:1: the query of task x holds a lone surrogate (U+D83D,'
      ' at character 2)',
    ),
    ('{"query": "a", "answer": ["b", "\\udc00"]}\n', 'the answer 2 of task'),
    ('{"query": "a", "answer": NaN}\n', 'mine.jsonl:1: not JSON: NaN'),
  ],
)
def test_a_malformed_row_names_its_file_and_line(tmp_path, text, message):
  with pytest.raises(schema.ConfigError) as error:
    task_sets.read_jsonl(_write(tmp_path, text), 'f1')
  assert message in str(error.value)


def test_characters_that_end_no_line_and_a_byte_order_mark_are_read(tmp_path):
  text = '\ufeff{"query": "a\u2028b\u0085c", "answer": "x"}\r\n'
  (tmp_path / 'mine.jsonl').write_bytes(text.encode('utf-8'))
  (task,) = task_sets.read_jsonl(str(tmp_path / 'mine.jsonl'), 'f1')
  assert task.query == 'a\u2028b\u0085c'


def _jsonl(tmp_path, train, evaluation):
  for name, queries in (('train', train), ('test', evaluation)):
    (tmp_path / f'{name}.jsonl').write_text(
      ''.join(json.dumps({'query': q, 'answer': 'x'}) + '\n' for q in queries)
    )
  return schema.TaskSetConfig(
    kind='jsonl',
    train=str(tmp_path / 'train.jsonl'),
    evaluation=str(tmp_path / 'test.jsonl'),
    reward='f1',
  )


def test_evaluation_tasks_that_are_trained_on_are_counted(tmp_path, caplog):
  config = _jsonl(
    tmp_path,
    ['Who?', 'What  is\nÉric?', 'a', 'b'],
    ['other', 'what is éric?', 'A', '-a'],
  )
  task_sets.load(config, str(tmp_path / 'data'))
  (record,) = caplog.records
  said = record.getMessage()
  assert '2 of 4 evaluation tasks' in said and "'test/000002'" in said
  caplog.clear()
  task_sets.load(_jsonl(tmp_path, ['a'], ['b']), str(tmp_path / 'data'))
  assert not caplog.records


def test_a_benchmark_that_is_trained_on_is_an_error(tmp_path):
  config = _mixture(tmp_path)
  (tmp_path / 'aime.json').write_text(
    json.dumps([{'query': 'N3', 'answer': 33}, {'query': 'x', 'answer': 1}])
  )
  with pytest.raises(schema.ConfigError) as error:
    task_sets.load(config, str(tmp_path / 'data'))
  assert '1 of 2 evaluation tasks' in str(error.value)
  assert "'natural_questions/0000003'" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(schema.ConfigError, match='no task file .*gone'):
    task_sets.read_jsonl(str(tmp_path / 'gone.jsonl'), 'f1')


def _mixture(tmp_path, **changes):
  nq, math = tmp_path / 'nq.jsonl', tmp_path / 'math.jsonl'
  nq.write_text(
    ''.join(
      json.dumps({'question': f'n{i}', 'golden_answers': [f'a{i}']}) + '\n'
      for i in range(6)
    )
  )
  math.write_text(
    ''.join(
      json.dumps({'question': f'm{i}', 'final_answer': str(i)}) + '\n' for i in range(6)
    )
  )
  aime = tmp_path / 'aime.json'
  aime.write_text(json.dumps([{'query': 'x', 'answer': 33}] * 3))
  pairs = {
    'kind': 'mixture',
    'benchmark': 'aime24',
    'evaluation': aime,
    'mixture.natural_questions.path': nq,
    'mixture.natural_questions.weight': 3,
    'mixture.deepmath.path': math,
    'mixture.deepmath.weight': 1,
  } | changes
  return overrides.override(
    schema.TaskSetConfig(), [(k, str(v)) for k, v in pairs.items()]
  )


def test_a_mix_holds_its_sources_and_a_benchmark_is_held_out(tmp_path):
  changes = {'mixture.deepmath.items': 4, 'test_items': 2}
  tasks = task_sets.load(_mixture(tmp_path, **changes), str(tmp_path / 'data'))
  assert [t.query for t in tasks.train] == [
    'n0',
    'n1',
    'n2',
    'n3',
    'n4',
    'n5',
    'm0',
    'm1',
    'm2',
    'm3',
  ]
  assert tasks.mixture == (
    task_sets.Part('natural_questions', 6, 3),
    task_sets.Part('deepmath', 4, 1),
  )
  assert [t.tags['source'] for t in tasks.train[5:7]] == [
    'natural_questions',
    'deepmath',
  ]
  assert [t.id for t in tasks.validation] == [f'aime24/{i:06d}' for i in range(3)]
  assert len(tasks.test) == 2 and tasks.test[0].answers == ('33',)


def _own(tmp_path, **sources):
  """Returns a mix of further sources alone; one of the name 'x' has 5 rows."""
  (tmp_path / 'x.jsonl').write_text(
    ''.join(
      json.dumps({'q': f'x{i}', 'to': {'say': [str(i), f'{i}.0']}, 'id': 'same'}) + '\n'
      for i in range(5)
    )
  )
  sources = {
    name: {'path': str(tmp_path / 'x.jsonl'), 'weight': 1} | said
    for name, said in sources.items()
  }
  none = {
    f'mixture.{s}.{f}': v
    for s in ('deepmath', 'natural_questions')
    for f, v in (('path', ''), ('weight', 0))
  }
  return _mixture(tmp_path, **none, **{'mixture.sources': json.dumps(sources)})


_COLUMNS = {'query': 'q', 'answer': 'to.say'}


def test_a_mix_without_a_benchmark_is_evaluated_on_rows_of_one_s_own(tmp_path, caplog):
  rows = tmp_path / 'test.jsonl'
  rows.write_text('{"query": "x0", "answer": "a"}\n{"query": "new", "answer": "b"}\n')
  mix = _own(tmp_path, x={'columns': _COLUMNS})
  config = dataclasses.replace(mix, benchmark='', evaluation=str(rows), reward='f1')
  tasks = task_sets.load(config, str(tmp_path / 'data'))
  assert [(t.query, t.reward) for t in tasks.test] == [('x0', 'f1'), ('new', 'f1')]
  assert '1 of 2 evaluation tasks have the query of a training task' in caplog.text
  gone = dataclasses.replace(config, evaluation='gone.jsonl')
  with pytest.raises(schema.ConfigError, match='task_set.evaluation: no task file'):
    task_sets.load(gone, str(tmp_path / 'data'))


def test_a_mix_takes_sources_of_one_s_own(tmp_path):
  config = _own(
    tmp_path,
    x={'columns': _COLUMNS, 'items': 3, 'weight': 4},
    y={'columns': {'query': 'to.say.0', 'answer': 'q'} | _COLUMNS, 'reward': 'f1'},
  )
  tasks = task_sets.load(config, str(tmp_path / 'data'))
  assert tasks.mixture == (task_sets.Part('x', 3, 4), task_sets.Part('y', 5, 1))
  first, last = tasks.train[0], tasks.train[-1]
  assert (first.id, first.query, first.answers) == ('x/0000000', 'x0', ('0', '0.0'))
  assert first.reward == 'match_or_number' and first.tags == {'source': 'x'}
  assert (last.id, last.reward, last.tags['source']) == ('y/0000004', 'f1', 'y')


@pytest.mark.parametrize(
  ('sources', 'message'),
  [
    ({'x': {'weight': 0}}, 'sources: x needs a path and a weight'),
    ({'x': {'colums': {}}}, 'sources: x must be an object with fields of path'),
    ({'x': {'weight': 'much'}}, 'weight must be a whole number'),
    ({'x': {'revision': 'v1'}}, 'revision=v1: only data sets by name'),
    ({'x': {'columns': {'answer': 'q'}}}, 'must name the column of "query"'),
    ({'x': {}}, 'sources: x: .*x.jsonl:1: the field "query" is missing'),
    ({'x': {'columns': {'query': 'q.r'}}}, "x.jsonl:1: there is no 'q.r'"),
    ({'deepmath': {}}, 'deepmath is a field of its own'),
  ],
)
def test_a_source_of_one_s_own_that_cannot_be_is_refused(tmp_path, sources, message):
  with pytest.raises(schema.ConfigError, match=message):
    task_sets.load(_own(tmp_path, **sources), str(tmp_path / 'data'))


def test_rows_of_a_data_set_by_name_are_tasks(tmp_path, monkeypatch):
  asked = []

  def read(path, columns, revision):
    asked.append((path, columns, revision))
    for i in range(3):
      yield f'{path}:{i + 1}', {'query': f'q{i}', 'answer': i}

  monkeypatch.setattr(task_sets.hub, 'read', read)
  held_out = _write(tmp_path, '{"q": "x", "to": {"say": "y"}}\n')
  config = schema.TaskSetConfig(
    kind='jsonl',
    train='hf://o/n/train',
    evaluation=held_out,
    columns=_COLUMNS,
    revision='v1',
    reward='exact_match',
  )
  tasks = task_sets.load(config, str(tmp_path / 'data'))
  assert asked == [('hf://o/n/train', _COLUMNS, 'v1')]
  assert [(t.id, t.query, t.answers, t.reward) for t in tasks.train[1:]] == [
    ('o/n/train/000002', 'q1', ('1',), 'exact_match'),
    ('o/n/train/000003', 'q2', ('2',), 'exact_match'),
  ]
  assert [(t.id, t.query, t.answers) for t in tasks.test] == [
    ('mine/000001', 'x', ('y',))
  ]
  with pytest.raises(schema.ConfigError, match='give hf://OWNER/NAME/SPLIT'):
    monkeypatch.undo()
    task_sets.read_jsonl('hf://train', 'f1')


def test_a_source_without_a_weight_is_left_out(tmp_path):
  changes = {'mixture.deepmath.path': '', 'mixture.deepmath.weight': 0}
  tasks = task_sets.load(_mixture(tmp_path, **changes), str(tmp_path / 'data'))
  assert tasks.mixture == (task_sets.Part('natural_questions', 6, 3),)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'mixture.deepmath.weight': 0}, 'mixture.deepmath: give path and weight'),
    ({'mixture.deepmath.path': ''}, 'mixture.deepmath: give path and weight'),
    (
      {'mixture.deepmath.path': 'gone.jsonl'},
      'task_set.mixture.deepmath: no file gone.jsonl',
    ),
    (
      {
        f'mixture.{s}.{f}': v
        for s in ('deepmath', 'natural_questions')
        for f, v in (('path', ''), ('weight', 0))
      },
      'no source has a weight',
    ),
    ({'benchmark': ''}, 'the file of a benchmark needs task_set.benchmark'),
    ({'evaluation': ''}, 'task_set.evaluation: give the file'),
    ({'mixture.deepmath.weight': -1}, 'weight must not be negative'),
    (
      {'mixture.deep_math.weight': 1},
      'did you mean --config.task_set.mixture.deepmath.weight',
    ),
  ],
)
def test_a_mix_that_cannot_be_is_refused(tmp_path, changes, message):
  with pytest.raises(schema.ConfigError, match=message):
    task_sets.load(_mixture(tmp_path, **changes), str(tmp_path / 'data'))


def test_rows_may_demonstrate_plans(tmp_path):
  path = tmp_path / 't.jsonl'
  plans = [
    {'sub_goal': 'find a', 'tool': 'search'},
    {'sub_goal': 'answer b', 'context': 'c', 'tool': 'python'},
  ]
  rows = [{'query': 'q', 'answer': 'a', 'plans': plans}, {'query': 'r', 'answer': 'a'}]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  shown, plain = task_sets.read_jsonl(str(path), 'f1')
  assert json.loads(shown.tags['plans']) == [
    'Sub-Goal: find a\nContext: \nTool Name: search',
    'Sub-Goal: answer b\nContext: c\nTool Name: python',
  ]
  assert plain.tags == {}


@pytest.mark.parametrize(
  'plans',
  [
    [],
    'search',
    ['search'],
    [{'sub_goal': 'x'}],
    [{'sub_goal': 'x', 'tool': 3}],
    [{'sub_goal': 'x', 'tool': 'search', 'more': ''}],
  ],
)
def test_plans_that_are_none_name_their_line(tmp_path, plans):
  path = tmp_path / 't.jsonl'
  path.write_text(json.dumps({'query': 'q', 'answer': 'a', 'plans': plans}))
  with pytest.raises(schema.ConfigError, match='t.jsonl.*1.*plan'):
    task_sets.read_jsonl(str(path), 'f1')


def test_without_tasks_there_is_only_the_corpus_that_is_read(tmp_path):
  config = schema.TaskSetConfig(kind='geohop')
  nothing = task_sets.without_tasks(config, str(tmp_path / 'a'), reads_corpus=False)
  assert nothing.corpus == '' and not (tmp_path / 'a').exists()
  found = task_sets.without_tasks(config, str(tmp_path / 'b'), reads_corpus=True)
  assert not (found.train or found.validation or found.test)
  (path,) = (tmp_path / 'b').iterdir()
  assert found.corpus == str(path)
  assert path.read_bytes().count(b'\n') > 200
