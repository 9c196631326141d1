"""Broken files of every kind that is read: each is one line that names the file.

No input may hang, keep a file open, or take more memory than _MOST bytes.
"""

import gc
import json
import os
import pathlib
import struct
import tracemalloc

import pytest
import zstandard
from etils import epath

from agentflow_jax.agents.tools.search import passages
from agentflow_jax.assembly import model_files, task_sets
from agentflow_jax.config import schema
from agentflow_jax.data import benchmarks, rows
from agentflow_jax.report import data as report_data
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.runtime import exits
from agentflow_jax.training import resuming
from tests.config import mini
from tests.tokenization import byte_tokenizer
from tests.weights import recipe

_MOST = 64 << 20
_DEEP = b'[' * 200_000
_NOT_TEXT = b'{"a": "\xff\xfe"}'


def _tensors(header: object, data: bytes = b'\0' * 64) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def _one(**changes):
  return {'x': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]} | changes}


def _string(text: bytes) -> bytes:
  return struct.pack('<Q', len(text)) + text


def _gguf(body: bytes, tensors=0, fields=1, version=3) -> bytes:
  return b'GGUF' + struct.pack('<IQQ', version, tensors, fields) + body


def _array(count: int, kind: int = 4) -> bytes:
  return _string(b'a') + struct.pack('<IIQ', 9, kind, count)


# File of a model directory -> what it holds instead; 'fifo' and 'directory' are
# that. None: it is as released, but for these fields of config.json.
_MODEL = [
  *[
    ('config.json', content)
    for content in (
      b'',
      b'nul',
      b'[]',
      b'5',
      b'{"a": 1e999}',
      _NOT_TEXT,
      _DEEP,
      'fifo',
      'directory',
      {'hidden_size': None},
      {'hidden_size': 'wide'},
      {'num_hidden_layers': 10**9},
      {'head_dim': 10**12},
      {'vocab_size': 10**15},
      {'hidden_size': 10**30},
      {'intermediate_size': 2**62},
      {'num_attention_heads': 0},
      {'architectures': 5},
      {'rope_scaling': 'x'},
      {'rope_theta': 'x'},
    )
  ],
  *[
    ('model.safetensors', content)
    for content in (
      b'',
      b'\0' * 8,
      struct.pack('<Q', 2**60),
      _tensors(b'{'),
      _tensors([]),
      _tensors(_DEEP),
      _tensors({'x': 5}),
      _tensors(_one(dtype='I3')),
      _tensors(_one(dtype=[])),
      _tensors(_one(shape=[-2])),
      _tensors(_one(shape=[2.5])),
      _tensors(_one(shape=[2**62, 2**62])),
      _tensors(_one(shape=[True, 2])),
      _tensors(_one(data_offsets=[8, 0])),
      _tensors(_one(data_offsets=[64, 72])),
      _tensors(_one(data_offsets=5)),
      _tensors({'x': {'dtype': 'F32'}}),
      _tensors(_one() | {'y': {'dtype': 'F32', 'shape': [2], 'data_offsets': [4, 12]}}),
      'fifo',
      'directory',
    )
  ],
  *[
    ('model.safetensors.index.json', content)
    for content in (
      b'',
      b'{}',
      b'{"weight_map": []}',
      b'{"weight_map": {"x": "../y"}}',
      b'{"weight_map": {"x": 5}}',
      b'{"weight_map": {"x": "none"}}',
      _DEEP,
      'fifo',
    )
  ],
  *[
    ('tokenizer.json', content)
    for content in (
      b'',
      b'[]',
      b'{}',
      _NOT_TEXT,
      _DEEP,
      b'{"added_tokens": [5]}',
      b'{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}',
      b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}}',
      b'{"model": 5, "added_tokens": []}',
      'fifo',
    )
  ],
  *[
    ('tokenizer_config.json', content)
    for content in (
      b'[]',
      _DEEP,
      _NOT_TEXT,
      b'{"chat_template": 5}',
      b'{"chat_template": [5]}',
      b'{"chat_template": [{"name": "a"}]}',
      'fifo',
    )
  ],
  *[
    ('chat_template.jinja', content)
    for content in (b'\xff\xfe', b'{% if', b'{{ 1/0 }', 'directory', 'fifo')
  ],
  *[
    ('generation_config.json', content)
    for content in (
      b'[]',
      b'{"eos_token_id": {}}',
      b'{"eos_token_id": [10000000000000]}',
    )
  ],
  *[
    ('model.gguf', content)
    for content in (
      b'',
      b'GGUF',
      _gguf(b''),
      _gguf(b'', fields=2**60),
      _gguf(b'', tensors=2**60, fields=0),
      _gguf(b'', version=2**30),
      _gguf(struct.pack('<Q', 2**60)),
      _gguf(_array(2**40)),
      _gguf(_array(2**60, kind=8)),
      _gguf(_array(3, kind=77)),
      _gguf(_string(b'a') + struct.pack('<I', 99)),
      _gguf(_string(b'\xff') + struct.pack('<IB', 0, 1)),
      _gguf(_string(b'a') + struct.pack('<I', 9) + struct.pack('<IQ', 9, 1) * 5000),
      _gguf(
        _string(b'general.architecture') + struct.pack('<I', 8) + _string(b'llama')
      ),
      _gguf(
        _string(b'w') + struct.pack('<I4QIQ', 4, *[2**40] * 4, 0, 0),
        tensors=1,
        fields=0,
      ),
      'cut',
      'fifo',
    )
  ],
]


def _put(path: pathlib.Path, content) -> None:
  if path.exists():
    path.unlink()
  if content == 'fifo':
    os.mkfifo(path)
  elif content == 'directory':
    path.mkdir()
  else:
    path.write_bytes(content)


def _checked(path, read, *errors):
  """Reads, and returns the one line of the error."""
  gc.collect()
  opened = set(os.listdir('/proc/self/fd'))
  tracemalloc.start()
  try:
    with pytest.raises(errors or ValueError) as caught:
      read()
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  message = str(caught.value)
  assert exits.code_of(exits.cause(caught.value)) == 2 or errors
  assert path.name in message or str(path.parent) in message, message
  assert '\n' not in message and len(message) < 1500, message
  assert peak < _MOST
  caught = None
  gc.collect()
  assert len(os.listdir('/proc/self/fd')) <= len(opened) + 1
  return message


@pytest.fixture(scope='module', autouse=True)
def _frozen():
  """Collections in these tests skip the objects of all libraries."""
  gc.collect()
  gc.freeze()
  yield
  gc.unfreeze()


@pytest.fixture(scope='module', name='released')
def _released(tmp_path_factory):
  path = recipe.write_released(
    tmp_path_factory.mktemp('models') / 'released',
    'qwen2',
    vocab_size=288,
    torch_dtype='float32',
    eos_token_id=259,
  )
  return byte_tokenizer.write(path) or path


@pytest.mark.parametrize(
  ('name', 'content'), _MODEL, ids=[f'{i}-{name}' for i, (name, _) in enumerate(_MODEL)]
)
def test_a_model_s_files(tmp_path, released, name, content):
  directory = tmp_path / 'broken_planner'
  directory.mkdir()
  if name == 'model.gguf':
    if content == 'cut':
      whole = recipe.write_gguf(tmp_path / 'whole.gguf', 'llama')
      content = pathlib.Path(whole).read_bytes()
      content = content[: len(content) * 3 // 4]
    _put(directory / name, content)
    source = str(directory / name)
  else:
    for file in released.iterdir():
      (directory / file.name).write_bytes(file.read_bytes())
    if isinstance(content, dict):
      described = json.loads((directory / name).read_text()) | content
      content = json.dumps(described).encode()
    if name == 'model.safetensors.index.json':
      (directory / 'model.safetensors').unlink()
    _put(directory / name, content)
    source = str(directory)
  _checked(directory / name, lambda: model_files.load(source))


_TASKS = [
  b'',
  b'\xff\n',
  _DEEP,
  b'[]\n',
  b'{"answer": 1}\n',
  b'{"query": 5}\n',
  b'{"query": "a", "answer": 1e999}\n',
  b'{"query": "a", "answer": {}}\n',
  b'{"query": "\\ud800", "answer": "a"}\n',
  'fifo',
  'directory',
]


@pytest.mark.parametrize('content', _TASKS, ids=range(len(_TASKS)))
def test_task_files(tmp_path, content):
  path = tmp_path / 'tasks.jsonl'
  _put(path, content)
  _checked(path, lambda: task_sets.read_jsonl(str(path), 'match'), schema.ConfigError)


_CORPORA = [
  ('corpus.jsonl', c)
  for c in (b'', b'\xff', _DEEP, b'[]\n', b'{"text": 5}\n', b'{"title": "a"}\n')
] + [('a.txt', b'\xff\xfe')]


@pytest.mark.parametrize(('name', 'content'), _CORPORA, ids=range(len(_CORPORA)))
def test_corpora(tmp_path, name, content):
  _put(tmp_path / name, content)
  where = tmp_path / name if name.endswith('.jsonl') else tmp_path
  _checked(where, lambda: passages.load_corpus(str(where)))


@pytest.mark.parametrize(
  'content', [b'', b'{}', b'[]', b'[5]', _DEEP, b'[NaN]', _NOT_TEXT, 'fifo']
)
def test_benchmark_files(tmp_path, content):
  path = tmp_path / 'data.json'
  _put(path, content)
  _checked(
    path, lambda: benchmarks.read(str(path), 'bamboogle'), benchmarks.MalformedItem
  )


@pytest.mark.parametrize('content', [b'', b'PAR1', b'PAR1' * 9, 'fifo'])
def test_parquet_files(tmp_path, content):
  path = tmp_path / 'rows.parquet'
  _put(path, content)
  _checked(path, lambda: list(rows.read(epath.Path(path), ['a'])), rows.MalformedRow)


def _packed(text: bytes) -> bytes:
  return zstandard.ZstdCompressor().compress(text)


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'(\xb5/\xfd',
    _packed(b''),
    _packed(b'\xff'),
    _packed(_DEEP),
    _packed(b'{"schema": 99}\n'),
    _packed(b'5\n'),
    _packed(b'{"schema": 1}\n{"kind": "turn"}\n'),
    _packed(b'{"schema": 1}\n[]\n'),
    'fifo',
    'directory',
  ],
)
def test_rollout_files(tmp_path, content):
  path = tmp_path / 'step_000001.p0.jsonl.zst'
  _put(path, content)
  _checked(path, lambda: rollout_files.read(epath.Path(path)))


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('metrics.jsonl', _DEEP + b'\n'),
    ('metrics.jsonl', b'[]\n'),
    ('metrics.jsonl', b'{"step": "a"}\n'),
    ('metrics.jsonl', b'\xff\n'),
    ('metrics.jsonl', 'fifo'),
    ('evaluations/final.json', b'[]'),
    ('evaluations/final.json', b'{"items": 5}'),
    ('evaluations/final.json', b'{"by_hops": [1]}'),
    ('evaluations/final.json', b'{"status": {"a": [1]}}'),
    ('evaluations/final.json', _DEEP),
    ('summary.json', b'5'),
    ('summary.json', _NOT_TEXT),
  ],
)
def test_a_run_s_files_in_its_report(tmp_path, name, content):
  run = tmp_path / 'run'
  (run / 'evaluations').mkdir(parents=True)
  if name != 'metrics.jsonl':
    (run / 'metrics.jsonl').write_text('{"step": 1}\n')
  _put(run / name, content)
  _checked(run / name, lambda: report_data.load(run))


@pytest.mark.parametrize('content', [b'', b'[]', b'5', _DEEP, _NOT_TEXT, 'fifo'])
def test_a_run_s_config(tmp_path, content):
  config = mini.config(tmp_path / 'in')
  _put(tmp_path / 'config.json', content)
  _checked(
    tmp_path / 'config.json',
    lambda: resuming.check_same_run(config, epath.Path(tmp_path)),
  )


def test_there_are_sixty_and_more():
  assert len(_MODEL) + len(_TASKS) + len(_CORPORA) >= 60
