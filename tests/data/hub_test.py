"""Rows of data sets by name: a stand-in for `datasets`, and the library itself."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from agentflow_jax.data import hub, rows

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_ROWS = [
  {
    'q': 'One?',
    'solution': {'final': '1', 'steps': ['a']},
    'id': 7,
    'golden': [{'text': 'one'}, {'text': '1'}],
    'a.b': 'dotted',
  },
  {
    'q': 'Two?',
    'solution': {'final': None, 'steps': []},
    'id': 8,
    'golden': [],
    'a.b': 'too',
  },
]


class _Stream:
  def __init__(self, found, names=None):
    self._found = found
    self.column_names = list(_ROWS[0]) if names is None else names

  def select_columns(self, names):
    return _Stream([{k: row[k] for k in names} for row in self._found], names)

  def __iter__(self):
    return iter(self._found)


@pytest.fixture(name='asked')
def _asked(monkeypatch):
  """Puts a stand-in in the library's place; returns what it was asked for."""
  calls = []

  def load_dataset_builder(path, name, *, revision):
    def as_streaming_dataset(split):
      calls.append((path, name, split, revision))
      if split == 'gone':
        raise ValueError('Bad split: gone.\nAvailable splits: ["train"]')
      return _Stream([] if split == 'empty' else _ROWS)

    return types.SimpleNamespace(
      config=types.SimpleNamespace(), as_streaming_dataset=as_streaming_dataset
    )

  monkeypatch.setitem(
    sys.modules,
    'datasets',
    types.SimpleNamespace(load_dataset_builder=load_dataset_builder),
  )
  return calls


@pytest.mark.parametrize(
  ('text', 'parts'),
  [
    ('hf://owner/name/train', ('owner/name', '', 'train')),
    ('hf://owner/name/main/test', ('owner/name', 'main', 'test')),
    ('hf:///data/mine/train', ('/data/mine', '', 'train')),
    ('hf://./mine/train', ('./mine', '', 'train')),
  ],
)
def test_addresses(text, parts):
  assert hub.parse(text) == hub.Address(*parts)


@pytest.mark.parametrize(
  'text',
  [
    'hf://name/train',
    'hf://owner//train',
    'hf://a/b/c/d/e',
    'hf:///train',
    'hf://',
    'hf://o/n/',
    'https://o/n/train',
  ],
)
def test_other_addresses_are_refused(text):
  with pytest.raises(rows.MalformedRow, match='give hf://OWNER/NAME/SPLIT'):
    hub.parse(text)


def test_rows_as_they_are_and_by_columns(asked):
  text = 'hf://o/n/train'
  assert list(hub.read(text, {})) == [(f'{text}:1', _ROWS[0]), (f'{text}:2', _ROWS[1])]
  columns = {'query': 'q', 'answer': 'solution.final', 'all': 'golden.text', 'x': 'a.b'}
  assert [row for _, row in hub.read(text, columns, 'v1')] == [
    {'query': 'One?', 'answer': '1', 'all': ['one', '1'], 'x': 'dotted'},
    # What is null is left out.
    {'query': 'Two?', 'all': [], 'x': 'too'},
  ]
  assert asked == [('o/n', None, 'train', None), ('o/n', None, 'train', 'v1')]


@pytest.mark.parametrize(
  ('text', 'columns', 'said'),
  [
    ('hf://o/n/gone', {}, 'ValueError: Bad split: gone. Available splits'),
    ('hf://o/n/empty', {}, 'holds no row'),
    ('hf://o/n/train', {'query': 'question'}, "no column 'question'; there are q,"),
    (
      'hf://o/n/train',
      {'query': 'solution.end'},
      "train:1: there is no 'solution.end' for the field 'query'",
    ),
    ('hf:///no/such/place/train', {}, 'no directory /no/such/place'),
  ],
)
def test_what_cannot_be_read_is_named(asked, text, columns, said):
  with pytest.raises(rows.MalformedRow, match=said):
    list(hub.read(text, columns))


def test_a_missing_library_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  said = r'datasets fsspec pyarrow \(the extra `hf`\)'
  with pytest.raises(rows.MalformedRow, match=said):
    list(hub.read('hf://o/n/train', {}))


_real = pytest.mark.skipif(
  importlib.util.find_spec('datasets') is None, reason='needs the extra hf'
)


@pytest.mark.slow
@_real
@pytest.mark.parametrize('format_', ['parquet', 'jsonl'])
def test_the_library_reads_100000_rows_in_little_memory(tmp_path, format_):
  count, page = 100_000, 'x' * 6000  # 600 MB beside the columns that are wanted.
  program = f"""
import json, sys
import pyarrow as pa
from pyarrow import parquet
rows = lambda a, b: [
    dict(q=f'What is {{i}}?', solution=dict(final=str(i), all=[dict(text=str(i))]),
         page={page!r} + str(i))
    for i in range(a, b)
]
parts = range(0, {count}, 200)
if {format_!r} == 'parquet':
  writer = None
  for a in parts:
    table = pa.Table.from_pylist(rows(a, a + 200))
    writer = writer or parquet.ParquetWriter('train.parquet', table.schema)
    writer.write_table(table)
  writer.close()
else:
  with open('train.jsonl', 'w') as f:
    for a in parts:
      f.writelines(json.dumps(row) + chr(10) for row in rows(a, a + 200))
"""
  directory = tmp_path / 'mine'
  directory.mkdir()
  subprocess.run([sys.executable, '-c', program], cwd=directory, check=True)
  reader = """
import json, resource, sys
from agentflow_jax.data import hub
import datasets, pyarrow.parquet
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = hub.read(sys.argv[1], {'query': 'q', 'answer': 'solution.final',
                               'all': 'solution.all.text'})
first = next(found)
before, count, last = peak(), 1, None
for where, last in found:
  count += 1
print('FOUND' + json.dumps([first, count, where, last, peak() - before]))
"""
  address = f'hf://{directory}/train'
  done = subprocess.run(
    [sys.executable, '-c', reader, address],
    cwd=_ROOT,
    check=True,
    text=True,
    stdout=subprocess.PIPE,
    timeout=500,
    env={**os.environ, 'HF_HOME': str(tmp_path / 'hf')},
  )
  (line,) = [x for x in done.stdout.splitlines() if x.startswith('FOUND')]
  first, total, where, last, grown = json.loads(line.removeprefix('FOUND'))
  assert first == [f'{address}:1', {'query': 'What is 0?', 'answer': '0', 'all': ['0']}]
  assert total == count and where == f'{address}:{count}'
  assert last == {'query': 'What is 99999?', 'answer': '99999', 'all': ['99999']}
  assert grown < 100, 'MB'
  # No copy of the data set is made.
  cached = sum(p.stat().st_size for p in (tmp_path / 'hf').rglob('*') if p.is_file())
  assert cached < 1e6
