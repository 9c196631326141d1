"""A SentencePiece model as a tokenizer.json: the same ids from another program."""

import json

import pytest

from agentflow_jax import records
from agentflow_jax.tokenization import hugging_face, sentencepiece_json, tokenizers
from tests.config import mini
from tests.tokenization import strings

_PLANNERS = ('geohop_planner', 'desk_planner')
_TEXTS = (
  '',
  ' ',
  '  two  spaces\n\nand\ttabs ',
  'Sub-Goal: find capital\nContext: #1 Portugal\nTool Name: search',
  'Sub-Goal:Sub-Goal: \nContext:\nTool Name: #12 #123 -> | -> ',
  '\u2581\u2581a Sub-Goal:\u2581b',
  'São Tomé, Ḩāfiz, 東京, \U0001f600\x00\x7f\ufffd\u200d',
  '12 345 6789 <0x41> <unk> <s>',
)


@pytest.fixture(scope='module', params=_PLANNERS, name='pair')
def _pair(request, tmp_path_factory):
  tokenizers_lib = pytest.importorskip('tokenizers')
  path = mini.ROOT / 'experiments' / request.param / tokenizers.FILE
  ours = tokenizers.SentencePieceTokenizer(path)
  directory = tmp_path_factory.mktemp('exported')
  sentencepiece_json.save(ours, directory, 256)
  return ours, tokenizers_lib.Tokenizer.from_file(str(directory / 'tokenizer.json'))


def test_ids_and_texts_are_the_same(pair):
  ours, theirs = pair
  assert theirs.get_vocab_size() == ours.vocab_size
  control = ('<|system|>', '<|user|>', '<|assistant|>', '<|end|>', '<pad>')
  texts = [t for t in (*_TEXTS, *strings.make()) if not any(c in t for c in control)]
  assert len(texts) > 900
  for text in texts:
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ids, text
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_broken_bytes_are_the_same_text(pair):
  ours, theirs = pair
  bytes_of = ours.encode('東')
  assert len(bytes_of) == 3
  for ids in (bytes_of[:2], bytes_of[1:], [*bytes_of[:1], *ours.encode('a')]):
    assert theirs.decode(ids) == ours.decode(ids)


def test_the_directory_is_read_by_the_reader_of_released_models(tmp_path):
  pytest.importorskip('jinja2')
  ours = tokenizers.SentencePieceTokenizer(
    mini.ROOT / 'experiments' / 'geohop_planner' / tokenizers.FILE
  )
  sentencepiece_json.save(ours, tmp_path, 256)
  theirs = hugging_face.from_directory(tmp_path)
  assert theirs.stop_ids == ours.stop_ids and theirs.pad_id == ours.pad_id
  prompt = [
    records.Segment('system', 'Tools:\nsearch'),
    records.Segment('user', 'Query: Who?\n'),
    records.Segment('user', 'Plan:<|end|>', trusted=False),
  ]
  assert theirs.render(prompt) == ours.render(prompt)
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert settings['eos_token'] == tokenizers.END_PIECE
  assert settings['model_max_length'] == 256


def test_pieces_are_read_as_sentencepiece_reads_them():
  path = mini.ROOT / 'experiments' / 'geohop_planner' / tokenizers.FILE
  ours = tokenizers.SentencePieceTokenizer(path)
  model = ours._model
  pieces = list(sentencepiece_json._pieces(ours.serialized))
  assert len(pieces) == model.vocab_size()
  for i, (piece, score, kind) in enumerate(pieces):
    assert piece == model.id_to_piece(i) and score == model.get_score(i)
    assert (kind == sentencepiece_json._CONTROL) == model.is_control(i)
  assert ('\n', sentencepiece_json._USER_DEFINED) in [(p, k) for p, _, k in pieces]
