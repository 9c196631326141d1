"""Tokenizers of released models: tokenizer.json, or a GGUF file's metadata."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.files import reading, writing
from agentflow_jax.tokenization import chat, gguf_vocabularies

TokenizerError = gguf_vocabularies.TokenizerError
# A function that tries a chat template, given its source, the added tokens, its
# variables and its switch for thinking; it raises TemplateError to refuse the template.
TemplateCheck = Callable[
  [str, Sequence[chat.AddedToken], Mapping[str, Any], chat.Thinking], None
]
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


class HuggingFaceTokenizer:
  """A tokenizer.json with the model's own chat template.

  Implements tokenizers.Tokenizer. Text is encoded with the matching of
  added tokens off, so that no text becomes an added token.
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
    ends: Collection[str] = (),
    check: TemplateCheck | None = None,
  ):
    """Builds a tokenizer.

    Args:
      definition: the content of a tokenizer.json.
      template: the chat template.
      variables: variables that the template may read beside the messages (bos_token,
        ...).
      stop: added tokens, by spelling or id, that end a response; at least one.
      pad: added token, by spelling or id, that fills rows; None for the first stop.
      directory: directory that it was read from, if from files that `save` may copy.
      thinking: whether the template is told to let the model think.
      ends: added tokens that end a response, too, where the template uses them.
      check: function that tries the template before it is compiled here.

    Raises:
      TokenizerError: the definition is broken, or lacks one of those tokens.
      TemplateError: the template does not compile, or cannot switch thinking.
      ModuleNotFoundError: tokenizers or jinja2 is not installed.
    """
    tokenizers = _tokenizers()
    try:
      added = tuple(
        chat.AddedToken(
          t['id'],
          t['content'],
          t.get('special', False),
          t.get('lstrip', False),
          t.get('rstrip', False),
        )
        for t in definition.get('added_tokens', ())
      )
      whole = tokenizers.Tokenizer.from_str(json.dumps(definition))
      self._plain = tokenizers.Tokenizer.from_str(
        json.dumps(_without_added(definition, {t.content for t in added}))
      )
    # The package raises bare Exceptions, and its panics are not even these.
    except BaseException as e:
      if isinstance(e, (KeyboardInterrupt, SystemExit, asyncio.CancelledError)):
        raise
      said = ' '.join(str(e).split())[:300]
      raise TokenizerError(f'{TOKENIZER} is broken: {said}') from e
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
    if check is not None:
      check(template, added, variables, thinking)
    self.template = chat.ChatTemplate(template, added, variables, thinking)
    self.opens_thought = self.template.opens_thought
    self.shown_call = self.template.shown_call
    size = whole.get_vocab_size(with_added_tokens=True)
    self.vocab_size = max([size, *(t.id + 1 for t in added)])
    behind = self.template.ends_of_turn() if ends else set()
    used = [
      i for t, i in self._ids.items() if t in ends and (t in template or i in behind)
    ]
    self.stop_ids = tuple(dict.fromkeys([*map(self._id, stop), *used]))
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
          data = (self._directory / name).read_bytes()
          writing.write_whole(path / name, data)
      return
    config = self._variables | {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'chat_template': self._source,
      'clean_up_tokenization_spaces': False,
    }
    generation = {'eos_token_id': list(self.stop_ids), 'pad_token_id': self.pad_id}
    for name, value in (
      (TOKENIZER, self._definition),
      ('tokenizer_config.json', config),
      ('generation_config.json', generation),
    ):
      text = json.dumps(value, ensure_ascii=False, indent=1)
      writing.write_whole(path / name, text)

  def encode(self, text):
    return self._plain.encode(text, add_special_tokens=False).ids

  def decode(self, ids):
    kept = [i for i in ids if i not in self._special and i < self.vocab_size]
    return self._whole.decode(kept, skip_special_tokens=False)

  def render(
    self, prompt: Sequence[records.Segment], tools: Sequence[Mapping[str, Any]] = ()
  ) -> list[int]:
    return self._encoded(self.template.pieces(prompt, tools))

  def render_response(
    self,
    prompt: Sequence[records.Segment],
    response: records.Segment,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> list[int]:
    ids = self._encoded(self.template.response_pieces(prompt, response, tools))
    for i, token in enumerate(ids):
      if token in self.stop_ids:
        return ids[: i + 1]
    raise chat.TemplateError('the chat template ends an answer with no end of a turn')

  def _encoded(self, pieces: Sequence[str | int]) -> list[int]:
    ids = []
    for piece in pieces:
      if isinstance(piece, int):
        ids.append(piece)
      else:
        ids += self.encode(piece)
    return ids


def _without_added(definition: Mapping[str, Any], added: set[str]) -> dict[str, Any]:
  """Returns a tokenizer that cannot give the added tokens.

  Nor does it pad, truncate, or put tokens around a text of its own accord.
  """
  model = definition['model']
  vocab = model.get('vocab')
  if isinstance(vocab, dict):
    # Some models have them in the vocabulary, too.
    merges = [
      m.split(' ', 1) if isinstance(m, str) else m for m in model.get('merges', ())
    ]
    needed = {''.join(m) for m in merges} | {model.get('unk_token')}
    vocab = {t: i for t, i in vocab.items() if t in needed or t not in added}
  return dict(
    definition,
    added_tokens=[],
    post_processor=None,
    padding=None,
    truncation=None,
    model=dict(model, vocab=vocab),
  )


def from_directory(
  directory: str | os.PathLike[str],
  thinking: chat.Thinking = 'auto',
  check: TemplateCheck | None = None,
) -> HuggingFaceTokenizer:
  """Reads a released model's tokenizer.

  Args:
    directory: the model's files.
    thinking: whether the template is told to let the model think.
    check: function that tries the template before it is compiled here.

  Raises:
    TokenizerError: a file is missing or broken; names it.
    TemplateError: there is no chat template, it does not compile, or it cannot
      switch thinking.
    ModuleNotFoundError: tokenizers or jinja2 is not installed.
  """
  path = epath.Path(directory)
  with reading.boundary(path / TOKENIZER, TokenizerError, chat.TemplateError):
    return _from_files(path, thinking, check)


def _from_files(
  path: epath.Path, thinking: chat.Thinking, check: TemplateCheck | None
) -> HuggingFaceTokenizer:
  definition = _json(path / TOKENIZER)
  if definition is None:
    raise TokenizerError(f'{path / TOKENIZER} does not exist')
  config = _json(path / 'tokenizer_config.json') or {}
  # Older releases name some tokens only in that file.
  config = (_json(path / 'special_tokens_map.json') or {}) | config
  template = config.get('chat_template')
  if (path / 'chat_template.jinja').exists():
    template = _text(path / 'chat_template.jinja')
  elif (path / 'chat_template.json').exists():
    template = (_json(path / 'chat_template.json') or {}).get('chat_template')
  if isinstance(template, list):  # Several, by name.
    template = {t['name']: t['template'] for t in template}
  if isinstance(template, dict):
    if 'default' not in template:
      raise chat.TemplateError(
        f'{path} has the chat templates {sorted(template)}, and none is called'
        " 'default': rename one of them to 'default'"
      )
    template = template['default']
  if not isinstance(template, str):
    raise chat.TemplateError(
      f'{path} has no chat template (chat_template of tokenizer_config.json,'
      ' or chat_template.jinja); base models cannot be prompted'
    )
  variables = {
    k: _spelling(config[k])
    for k in config
    if k.endswith('_token') and isinstance(config[k], (str, dict))
  }
  stop = _stops(path)
  if 'eos_token' in variables:
    stop.append(variables['eos_token'])
  with _naming(path):
    return HuggingFaceTokenizer(
      definition,
      template=template,
      variables=variables,
      stop=stop,
      pad=variables.get('pad_token'),
      directory=path,
      thinking=thinking,
      check=check,
    )


def _stops(path: epath.Path) -> list[int | str]:
  """Returns the ids of eos_token_id in the generation config, or the config."""
  for name in ('generation_config.json', 'config.json'):
    stop = (_json(path / name) or {}).get('eos_token_id')
    if stop is None:
      continue
    ids: Any = [stop] if isinstance(stop, int) else stop
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
      raise TokenizerError(
        f'{path / name}: eos_token_id is an id or a list of ids, not {stop!r}'
      )
    return ids
  return []


def _spelling(token: Any) -> str:
  return token['content'] if isinstance(token, dict) else token


def _json(path: epath.Path) -> dict[str, Any] | None:
  """Returns the object that a file holds; None where there is no such file."""
  try:
    with reading.boundary(path, TokenizerError):
      value = reading.read_json(path)
      if not isinstance(value, dict):
        raise ValueError('it holds no JSON object')
      return value
  except FileNotFoundError:
    return None


def _text(path: epath.Path) -> str:
  with reading.boundary(path, TokenizerError):
    return path.read_text(encoding='utf-8')


def from_gguf(
  path: str | os.PathLike[str],
  thinking: chat.Thinking = 'auto',
  check: TemplateCheck | None = None,
) -> HuggingFaceTokenizer:
  """Builds the tokenizer that a GGUF file's metadata describes.

  Args:
    path: the GGUF file.
    thinking: whether the template is told to let the model think.
    check: function that tries the template before it is compiled here.

  Raises:
    TokenizerError: the tokenizer is not byte-pair encoding, or its split is not
      supported.
    TemplateError: there is no chat template, it does not compile, or it cannot
      switch thinking.
    ModuleNotFoundError: gguf, tokenizers or jinja2 is not installed.
  """
  found = gguf_vocabularies.read(path)
  with _naming(path):
    return HuggingFaceTokenizer(
      found.definition,
      template=found.template,
      variables=found.variables,
      stop=found.stop,
      pad=found.pad,
      thinking=thinking,
      ends=gguf_vocabularies.ENDS,
      check=check,
    )


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Puts the path before the messages of a tokenizer's and a template's errors."""
  try:
    yield
  except (TokenizerError, chat.TemplateError) as e:
    raise type(e)(f'{path}: {e}') from e


def _tokenizers():
  try:
    import tokenizers
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      'released tokenizers need the package tokenizers:'
      ' pip install gguf jinja2 tokenizers (the extra `models`)'
    ) from e
  return tokenizers
