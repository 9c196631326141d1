"""The tokenizer that a GGUF file's metadata describes, as a tokenizer.json."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax.files import gguf_container, reading
from agentflow_jax.tokenization import chat

_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# llama.cpp's name of a split: how it cuts a text before byte-pair encoding.
_SPLITS = {
  'smollm': [
    {'type': 'Digits', 'individual_digits': True},
    {
      'type': 'ByteLevel',
      'add_prefix_space': False,
      'trim_offsets': True,
      'use_regex': True,
    },
  ],
  'qwen2': [_WORDS % r'\p{N}'],
  'llama-bpe': [_WORDS % r'\p{N}{1,3}'],
}
# llama.cpp's other names of the same splits.
_SAME_SPLIT = {
  'llama3': 'llama-bpe',
  'llama-v3': 'llama-bpe',
  'deepseek-r1-qwen': 'qwen2',
}
# Spellings of tokens at which llama.cpp ends a response, even if the metadata
# does not name them. Here they end one if the chat template uses them.
ENDS = (
  '<|eot_id|>',
  '<|eom_id|>',
  '<|im_end|>',
  '<|end|>',
  '<end_of_turn>',
  '<|endoftext|>',
  '<|end_of_text|>',
  '</s>',
  '<EOT>',
  '_<EOT>',
  '[EOT]',
  '[EOS]',
  '<|return|>',
  '<|call|>',
  '<|calls|>',
  '<|flush|>',
  '<end_of_utterance>',
  '<turn|>',
)
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # Kinds of tokens.


class TokenizerError(ValueError):
  """A tokenizer that is missing, broken, or not supported."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokenizer that the metadata of a GGUF file describes.

  Attributes:
    definition: the content of a tokenizer.json that means the same.
    template: the chat template.
    variables: spellings that the template may read (bos_token, eos_token).
    stop: ids that end a response.
    pad: id that fills rows; None where the file names none.
  """

  definition: Mapping[str, Any]
  template: str
  variables: Mapping[str, str]
  stop: Sequence[int]
  pad: int | None


def read(path: str | os.PathLike[str]) -> Vocabulary:
  """Reads the metadata.

  Raises:
    TokenizerError: the tokenizer is not byte-pair encoding, or its split is not
      supported.
    TemplateError: there is no chat template.
    ModuleNotFoundError: gguf is not installed.
  """
  with reading.boundary(path, TokenizerError, chat.TemplateError):
    return _vocabulary(path, _gguf_fields(path))


def _vocabulary(path, fields: Mapping[str, Any]) -> Vocabulary:
  kind, split = fields.get('ggml.model'), fields.get('ggml.pre')
  split = _SAME_SPLIT.get(split, split) if isinstance(split, str) else split
  if kind != 'gpt2' or split not in _SPLITS:
    raise TokenizerError(
      f'{path}: a tokenizer of model {kind!r} and split {split!r} is not'
      f' supported; there are gpt2 with {sorted(_SPLITS)}'
    )
  # A file with several templates uses the second name for the default one.
  template = fields.get('chat_template') or fields.get('chat_template.default')
  if template is None:
    raise chat.TemplateError(f'{path} has no chat template')
  tokens = fields['ggml.tokens']
  named = {
    name: fields[f'ggml.{name}_token_id']
    for name in ('bos', 'eos', 'eot', 'eom')
    if f'ggml.{name}_token_id' in fields
  }
  return Vocabulary(
    definition=_definition(fields, split, template),
    template=template,
    variables={f'{n}_token': tokens[named[n]] for n in ('bos', 'eos') if n in named},
    stop=[named[n] for n in ('eos', 'eot', 'eom') if n in named],
    pad=fields.get('ggml.padding_token_id'),
  )


def _definition(fields: Mapping[str, Any], split: str, template: str) -> dict[str, Any]:
  """Returns the tokenizer.json."""
  tokens = fields['ggml.tokens']
  added = []
  for i, (token, kind) in enumerate(
    zip(tokens, fields['ggml.token_type'], strict=True)
  ):
    # Some converters wrote such a token as a piece of text; llama.cpp corrects
    # that, too.
    if kind == _NORMAL and token in ENDS and token in template:
      kind = _CONTROL
    if kind in (_CONTROL, _USER_DEFINED):
      added.append(
        {
          'id': i,
          'content': token,
          'special': kind == _CONTROL,
          'lstrip': False,
          'rstrip': False,
          'single_word': False,
          'normalized': False,
        }
      )
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': {'type': 'NFC'} if split == 'qwen2' else None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': _steps(split)},
    'post_processor': None,
    'decoder': {
      'type': 'ByteLevel',
      'add_prefix_space': True,
      'trim_offsets': True,
      'use_regex': True,
    },
    'model': {
      'type': 'BPE',
      # Added tokens are included; otherwise the package renumbers them.
      'vocab': {t: i for i, t in enumerate(tokens)},
      'merges': [m.split(' ', 1) for m in fields['ggml.merges']],
      'ignore_merges': split == 'llama-bpe',
      'dropout': None,
      'unk_token': None,
      'byte_fallback': False,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
    },
  }


def _steps(split: str) -> list[dict[str, Any]]:
  steps = []
  for step in _SPLITS[split]:
    if isinstance(step, dict):
      steps.append(step)
      continue
    steps += [
      {
        'type': 'Split',
        'pattern': {'Regex': step},
        'behavior': 'Isolated',
        'invert': False,
      },
      {
        'type': 'ByteLevel',
        'add_prefix_space': False,
        'trim_offsets': False,
        'use_regex': False,
      },
    ]
  return steps


def _gguf_fields(path) -> dict[str, Any]:
  """Returns the metadata about the tokenizer, without its common prefix."""
  try:
    reader = gguf_container.open_gguf(path)
  except FileNotFoundError:
    raise TokenizerError(f'{path} does not exist') from None
  return {
    k.removeprefix('tokenizer.'): f.contents()
    for k, f in reader.fields.items()
    if k.startswith('tokenizer.')
  }
