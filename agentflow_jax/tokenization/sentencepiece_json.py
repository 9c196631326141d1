"""A SentencePiece model of ours as the files that transformers' AutoTokenizer reads.

A tokenizer.json says the same in other words: spaces become U+2581, the strings that
are always one piece are found first, then pairs are merged in the order of their
pieces' scores, and characters without a piece become bytes. The ids of a text are the
same, but for a text that spells a control piece, such as '<|end|>': transformers reads
it as that piece, as it does with all models, and `tokenizers.SentencePieceTokenizer`
never does.
"""

import json
import os
import struct
from collections.abc import Iterator

from etils import epath

from agentflow_jax.files import writing
from agentflow_jax.tokenization import tokenizers

_SPACE = '\u2581'
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # Types of pieces.
# Neighbouring messages of one role are one text, as in records.joined.
_TEMPLATE = (
  "{% for message in messages %}{% if loop.first or message['role'] !="
  " loop.previtem['role'] %}{{ '<|' + message['role'] + '|>' }}{% endif %}"
  "{{ message['content'] }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save(
  tokenizer: tokenizers.SentencePieceTokenizer,
  directory: str | os.PathLike[str],
  context: int,
) -> None:
  """Writes tokenizer.json, its settings, and where a response ends.

  Args:
    tokenizer: tokenizer to write.
    directory: existing directory.
    context: the model's context [tokens].
  """
  pieces = list(_pieces(tokenizer.serialized))
  (stop,) = tokenizer.stop_ids
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'pad_token': pieces[tokenizer.pad_id][0],
    'eos_token': pieces[stop][0],
    'clean_up_tokenization_spaces': False,
    'model_max_length': context,
    'chat_template': _TEMPLATE,
  }
  ends = {'eos_token_id': stop, 'pad_token_id': tokenizer.pad_id}
  for name, value in (
    ('tokenizer.json', _definition(pieces)),
    ('tokenizer_config.json', settings),
    ('generation_config.json', ends),
  ):
    text = json.dumps(value, ensure_ascii=False, indent=1)
    writing.write_whole(epath.Path(directory) / name, text + '\n')


def _definition(pieces: list[tuple[str, float, int]]) -> dict[str, object]:
  """Returns the contents of a tokenizer.json."""
  added = [
    {
      'id': i,
      'content': piece,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      # Control pieces are not written with spaces; the others are compared with text
      # whose spaces are replaced.
      'normalized': kind == _USER_DEFINED,
      'special': kind == _CONTROL,
    }
    for i, (piece, _, kind) in enumerate(pieces)
    # Of one character there is nothing to find: no pair holds it.
    if kind == _CONTROL or (kind == _USER_DEFINED and len(piece) > 1)
  ]
  spaces = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': _SPACE}
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': spaces,
    'pre_tokenizer': None,
    'post_processor': None,
    'decoder': {
      'type': 'Sequence',
      'decoders': [
        {'type': 'Replace', 'pattern': {'String': _SPACE}, 'content': ' '},
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
      ],
    },
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': True,
      'ignore_merges': False,
      'vocab': {piece: i for i, (piece, _, _) in enumerate(pieces)},
      'merges': _merges(pieces),
    },
  }


def _merges(pieces: list[tuple[str, float, int]]) -> list[list[str]]:
  """Returns the pairs that may be merged, those of the highest score first."""
  scores = {piece: score for piece, score, kind in pieces if kind == _NORMAL}
  pairs = [
    (-score, piece, cut)
    for piece, score in scores.items()
    for cut in range(1, len(piece))
    if piece[:cut] in scores and piece[cut:] in scores
  ]
  return [[piece[:cut], piece[cut:]] for _, piece, cut in sorted(pairs)]


def _pieces(serialized: bytes) -> Iterator[tuple[str, float, int]]:
  """Yields (piece, score, type) in the order of ids.

  Reads the pieces of a ModelProto of SentencePiece: its field 1, with a text (1), a
  float (2) and a type (3). SentencePiece itself tells no types of pieces that are
  found first.
  """
  for number, value in _fields(serialized):
    if number == 1:
      assert isinstance(value, bytes)
      # What is not stored has the default of the format.
      found: dict[int, bytes | int] = {1: b'', 2: bytes(4), 3: _NORMAL}
      found.update(_fields(value))
      piece, score, kind = found[1], found[2], found[3]
      assert isinstance(piece, bytes) and isinstance(score, bytes)
      yield piece.decode(), struct.unpack('<f', score)[0], int(kind)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
  """Yields (number, value) of the fields of a protocol buffer message."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = data[at]
      at += 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        return value

  while at < len(data):
    key = varint()
    wire = key & 7
    if wire == 0:
      yield key >> 3, varint()
      continue
    size = {1: 8, 5: 4}.get(wire) or varint()
    yield key >> 3, data[at : at + size]
    at += size
