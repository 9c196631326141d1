"""Tokenizers of released models: tokenizer.json, or a GGUF file's metadata."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.data import chat

TOKENIZER = 'tokenizer.json'
# What a directory may hold beside it; an export copies them all.
FILES = (
    TOKENIZER,
    'tokenizer_config.json',
    'special_tokens_map.json',
    'generation_config.json',
    'chat_template.jinja',
    'chat_template.json',
    'vocab.json',
    'merges.txt',
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# How llama.cpp's names split a text before byte-pair encoding.
_SPLITS = {
    'smollm': [
        {'type': 'Digits', 'individual_digits': True},
        {
            'type': 'ByteLevel', 'add_prefix_space': False,
            'trim_offsets': True, 'use_regex': True,
        },
    ],
    'qwen2': [_WORDS % r'\p{N}'],
    'llama-bpe': [_WORDS % r'\p{N}{1,3}'],
}


class TokenizerError(ValueError):
  """A tokenizer that is missing, broken, or not supported."""


class HuggingFaceTokenizer:
  """A tokenizer.json with the model's own chat template.

  Implements data.tokenizers.Tokenizer. Text is encoded with the matching of
  added tokens off: no text, whoever wrote it, becomes one.
  """

  def __init__(
      self,
      definition: Mapping[str, Any],
      *,
      template: str,
      variables: Mapping[str, Any],
      stop: Sequence[str | int],
      pad: str | int | None = None,
      directory: epath.Path | None = None,
      thinking: chat.Thinking = 'auto',
  ):
    """Builds a tokenizer.

    Args:
      definition: the content of a tokenizer.json.
      template: the chat template.
      variables: what it may read beside the messages (bos_token, ...).
      stop: added tokens, by spelling or id, that end a response; at least one.
      pad: likewise, what fills rows; None for the first stop.
      directory: where it was read from, if from files that `save` may copy.
      thinking: whether the template is told to let the model think.

    Raises:
      TokenizerError: the definition is broken, or lacks one of those tokens.
      TemplateError: the template does not compile, or cannot switch thinking.
      ModuleNotFoundError: tokenizers or jinja2 is not installed.
    """
    tokenizers = _tokenizers()
    try:
      added = tuple(
          chat.AddedToken(
              t['id'], t['content'], t.get('special', False),
              t.get('lstrip', False), t.get('rstrip', False),
          )
          for t in definition.get('added_tokens', ())
      )
      whole = tokenizers.Tokenizer.from_str(json.dumps(definition))
      self._plain = tokenizers.Tokenizer.from_str(
          json.dumps(_without_added(definition, {t.content for t in added}))
      )
    except Exception as e:  # The package raises bare Exceptions.
      raise TokenizerError(f'{TOKENIZER} is broken: {e}') from e
    for token in added:
      if whole.token_to_id(token.content) != token.id:
        raise TokenizerError(
            f'{TOKENIZER} is broken: the package gives {token.content!r} the id'
            f' {whole.token_to_id(token.content)}, not {token.id}'
        )
    self._whole = whole
    self._definition, self._directory = definition, directory
    self._variables, self._source = dict(variables), template
    self._ids = {t.content: t.id for t in added}
    self._special = {t.id for t in added if t.special}
    self.template = chat.ChatTemplate(template, added, variables, thinking)
    self.opens_thought = self.template.opens_thought
    size = whole.get_vocab_size(with_added_tokens=True)
    self.vocab_size = max([size, *(t.id + 1 for t in added)])
    self.stop_ids = tuple(dict.fromkeys(self._id(s) for s in stop))
    if not self.stop_ids:
      raise TokenizerError('no token is known to end a response')
    self.pad_id = self.stop_ids[0] if pad is None else self._id(pad)

  def _id(self, token: str | int) -> int:
    if isinstance(token, int):
      if not 0 <= token < self.vocab_size:
        raise TokenizerError(f'token {token} leaves the vocabulary')
      return token
    found = self._ids.get(token, self._whole.token_to_id(token))
    if found is None:
      raise TokenizerError(f'there is no token {token!r}')
    return found

  def save(self, directory):
    path = epath.Path(directory)
    if self._directory is not None:
      for name in FILES:
        if (self._directory / name).exists():
          (path / name).write_bytes((self._directory / name).read_bytes())
      return
    config = self._variables | {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'chat_template': self._source,
        'clean_up_tokenization_spaces': False,
    }
    generation = {
        'eos_token_id': list(self.stop_ids), 'pad_token_id': self.pad_id
    }
    for name, value in (
        (TOKENIZER, self._definition),
        ('tokenizer_config.json', config),
        ('generation_config.json', generation),
    ):
      (path / name).write_text(json.dumps(value, ensure_ascii=False, indent=1))

  def encode(self, text):
    return self._plain.encode(text, add_special_tokens=False).ids

  def decode(self, ids):
    kept = [i for i in ids if i not in self._special and i < self.vocab_size]
    return self._whole.decode(kept, skip_special_tokens=False)

  def render(self, prompt: Sequence[records.Segment]) -> list[int]:
    ids = []
    for piece in self.template.pieces(prompt):
      if isinstance(piece, int):
        ids.append(piece)
      else:
        ids += self.encode(piece)
    return ids


def _without_added(
    definition: Mapping[str, Any], added: set[str]
) -> dict[str, Any]:
  """Returns a tokenizer that cannot give the added tokens.

  Nor does it pad, truncate, or put tokens around a text of its own accord.
  """
  model = definition['model']
  vocab = model.get('vocab')
  if isinstance(vocab, dict):
    # Some models have them in the vocabulary, too.
    merges = [m.split(' ', 1) if isinstance(m, str) else m
              for m in model.get('merges', ())]
    needed = {''.join(m) for m in merges} | {model.get('unk_token')}
    vocab = {t: i for t, i in vocab.items() if t in needed or t not in added}
  return dict(
      definition, added_tokens=[], post_processor=None, padding=None,
      truncation=None, model=dict(model, vocab=vocab),
  )


def from_directory(
    directory: str | os.PathLike[str], thinking: chat.Thinking = 'auto'
) -> HuggingFaceTokenizer:
  """Reads a released model's tokenizer.

  Args:
    directory: the model's files.
    thinking: whether the template is told to let the model think.

  Raises:
    TokenizerError: a file is missing or broken; names it.
    TemplateError: there is no chat template, it does not compile, or it cannot
      switch thinking.
    ModuleNotFoundError: tokenizers or jinja2 is not installed.
  """
  path = epath.Path(directory)
  definition = _json(path / TOKENIZER)
  if definition is None:
    raise TokenizerError(f'{path / TOKENIZER} does not exist')
  config = _json(path / 'tokenizer_config.json') or {}
  template = config.get('chat_template')
  if (path / 'chat_template.jinja').exists():
    template = (path / 'chat_template.jinja').read_text()
  elif (path / 'chat_template.json').exists():
    template = _json(path / 'chat_template.json').get('chat_template')
  if isinstance(template, list):  # Several, by name.
    template = {t['name']: t['template'] for t in template}.get('default')
  if not isinstance(template, str):
    raise chat.TemplateError(
        f'{path} has no chat template (chat_template of tokenizer_config.json,'
        ' or chat_template.jinja); base models cannot be prompted'
    )
  variables = {
      k: _spelling(config[k])
      for k in ('bos_token', 'eos_token', 'pad_token', 'unk_token')
      if config.get(k) is not None
  }
  generation = _json(path / 'generation_config.json') or {}
  stop = generation.get('eos_token_id', [])
  stop = [stop] if isinstance(stop, int) else list(stop or [])
  if 'eos_token' in variables:
    stop.append(variables['eos_token'])
  try:
    return HuggingFaceTokenizer(
        definition, template=template, variables=variables, stop=stop,
        pad=variables.get('pad_token'), directory=path, thinking=thinking,
    )
  except TokenizerError as e:
    raise TokenizerError(f'{path}: {e}') from e


def _spelling(token: Any) -> str:
  return token['content'] if isinstance(token, dict) else token


def _json(path: epath.Path) -> Any:
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise TokenizerError(f'{path} is not JSON: {e}') from e


def from_gguf(
    path: str | os.PathLike[str], thinking: chat.Thinking = 'auto'
) -> HuggingFaceTokenizer:
  """Builds the tokenizer that a GGUF file's metadata describes.

  Args:
    path: the GGUF file.
    thinking: whether the template is told to let the model think.

  Raises:
    TokenizerError: not byte-pair encoding, or a split that we lack.
    TemplateError: no chat template, one that does not compile, or one that
      cannot switch thinking.
    ModuleNotFoundError: gguf, tokenizers or jinja2 is not installed.
  """
  fields = _gguf_fields(path)
  kind, split = fields.get('ggml.model'), fields.get('ggml.pre')
  if kind != 'gpt2' or split not in _SPLITS:
    raise TokenizerError(
        f'{path}: a tokenizer of model {kind!r} and split {split!r} is not'
        f' supported; there are gpt2 with {sorted(_SPLITS)}'
    )
  if 'chat_template' not in fields:
    raise chat.TemplateError(f'{path} has no chat template')
  tokens, kinds = fields['ggml.tokens'], fields['ggml.token_type']
  added = [
      # 3 is a control token, 4 one that users defined.
      {
          'id': i, 'content': token, 'special': kind == 3, 'lstrip': False,
          'rstrip': False, 'single_word': False, 'normalized': False,
      }
      for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
      if kind in (3, 4)
  ]
  definition = {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': added,
      'normalizer': {'type': 'NFC'} if split == 'qwen2' else None,
      'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': _steps(split)},
      'post_processor': None,
      'decoder': {
          'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True,
          'use_regex': True,
      },
      'model': {
          'type': 'BPE',
          # All of them: else the package numbers added tokens anew.
          'vocab': {t: i for i, t in enumerate(tokens)},
          'merges': [m.split(' ', 1) for m in fields['ggml.merges']],
          'ignore_merges': split == 'llama-bpe',
          'dropout': None, 'unk_token': None, 'byte_fallback': False,
          'continuing_subword_prefix': None, 'end_of_word_suffix': None,
          'fuse_unk': False,
      },
  }

  def spelled(name):
    found = fields.get(f'ggml.{name}_token_id')
    return None if found is None else tokens[found]

  variables = {f'{n}_token': spelled(n) for n in ('bos', 'eos')}
  return HuggingFaceTokenizer(
      definition,
      template=fields['chat_template'],
      variables={k: v for k, v in variables.items() if v is not None},
      stop=[fields['ggml.eos_token_id']] if variables['eos_token'] else [],
      pad=fields.get('ggml.padding_token_id'),
      thinking=thinking,
  )


def _steps(split: str) -> list[dict[str, Any]]:
  steps = []
  for step in _SPLITS[split]:
    if isinstance(step, dict):
      steps.append(step)
      continue
    steps += [
        {
            'type': 'Split', 'pattern': {'Regex': step},
            'behavior': 'Isolated', 'invert': False,
        },
        {
            'type': 'ByteLevel', 'add_prefix_space': False,
            'trim_offsets': False, 'use_regex': False,
        },
    ]
  return steps


def _gguf_fields(path) -> dict[str, Any]:
  """Returns the metadata about the tokenizer, without its common prefix."""
  try:
    import gguf
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        "GGUF files need the package gguf: pip install 'agentflow-jax[models]'"
    ) from e
  if not os.path.isfile(path):
    raise TokenizerError(f'{path} does not exist')
  try:
    reader = gguf.GGUFReader(os.fspath(path))
    return {
        k.removeprefix('tokenizer.'): f.contents()
        for k, f in reader.fields.items()
        if k.startswith('tokenizer.')
    }
  except (ValueError, IndexError, KeyError, OSError) as e:
    raise TokenizerError(f'{path} is not a whole GGUF file: {e}') from e


def _tokenizers():
  try:
    import tokenizers
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        'released tokenizers need the package tokenizers: pip install'
        " 'agentflow-jax[models]'"
    ) from e
  return tokenizers
