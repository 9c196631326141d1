"""Tokenizers behind one small interface, and how segments become token ids."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
from etils import epath

from agentflow_jax import records
from agentflow_jax.files import reading, writing

_ROLES = ('system', 'user', 'assistant')
_ROLE_PIECES = tuple(f'<|{role}|>' for role in _ROLES)
END_PIECE = '<|end|>'
FILE = 'tokenizer.model'


class Tokenizer(Protocol):
  """Text to ids and back; control tokens exist as ids only.

  Attributes:
    vocab_size: ids lie in [0, vocab_size).
    pad_id: fills rows; masks never look at it.
    stop_ids: ids that end a response.
    opens_thought: whether a rendered prompt ends inside a thought that the
      chat template opened (`<think>`, `<thinking>` or `<reasoning>`), so that a
      response holds only the end of that thought.
    shown_call: text of a response with one call as the chat template writes it; ''
      where `render` takes no tools, calls and results. A conversation with calls is
      then written as text (agents.call_text.plain).
  """

  vocab_size: int
  pad_id: int
  stop_ids: tuple[int, ...]
  opens_thought: bool
  shown_call: str

  def encode(self, text: str) -> list[int]:
    """Encodes text; never gives a control token, whatever the text holds."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids; control tokens decode to nothing."""
    ...

  def render(
    self, prompt: Sequence[records.Segment], tools: Sequence[Mapping[str, Any]] = ()
  ) -> list[int]:
    """Encodes a prompt up to where the assistant begins to speak.

    Args:
      prompt: prompt.
      tools: tools as OpenAI's interface describes them; only where there is a
        `shown_call`.
    """
    ...

  def render_response(
    self,
    prompt: Sequence[records.Segment],
    response: records.Segment,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> list[int]:
    """Encodes what a model should sample behind `render(prompt, tools)`.

    Args:
      prompt: prompt.
      response: message of the assistant that answers it, with calls only where there
        is a `shown_call`.
      tools: tools, see `render`.

    Returns:
      Ids of the response, up to and including the id that ends it.

    Raises:
      ValueError: the chat template cannot write it as a response.
    """
    ...

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes the files that it is loaded from to an existing directory."""


class SentencePieceTokenizer:
  """A SentencePiece model whose roles and end are control pieces.

  SentencePiece never produces a control piece from text, so a tool result that
  spells '<|end|>' stays text. A prompt is, for every run of segments of one
  role, the role's id and the run's text encoded as one piece.
  """

  # There is no chat template.
  opens_thought = False
  shown_call = ''

  def __init__(self, path: str | os.PathLike[str]):
    """Loads a model.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a SentencePiece model, or one without the control pieces.
    """
    with reading.boundary(path):
      self._serialized = epath.Path(path).read_bytes()
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=self._serialized)
    except RuntimeError as e:
      raise ValueError(f'{path} is not a SentencePiece model') from e
    self.vocab_size = self._model.vocab_size()
    self.pad_id = self._model.pad_id()
    ids = {p: self._model.piece_to_id(p) for p in (*_ROLE_PIECES, END_PIECE)}
    missing = [p for p, i in ids.items() if not self._model.is_control(i)]
    if missing:
      raise ValueError(f'{path} lacks the control pieces {missing}')
    self._role_ids = {r: ids[p] for r, p in zip(_ROLES, _ROLE_PIECES)}
    self.stop_ids = (ids[END_PIECE],)

  @property
  def serialized(self) -> bytes:
    """The SentencePiece model, as it was read."""
    return self._serialized

  def save(self, directory):
    writing.write_whole(epath.Path(directory) / FILE, self._serialized)

  def encode(self, text):
    return self._model.encode(text)

  def decode(self, ids):
    # A random policy samples control ids too; they are no text.
    known = [i for i in ids if not self._model.is_control(i)]
    return self._model.decode(known)

  def render(self, prompt, tools=()):
    if tools:
      raise ValueError('there is no chat template that shows tools')
    ids: list[int] = []
    for segment in records.joined(prompt):
      if segment.role not in self._role_ids:
        raise ValueError(f'unknown role {segment.role!r}; roles are {_ROLES}')
      ids.append(self._role_ids[segment.role])
      ids += self._model.encode(segment.text)
    ids.append(self._role_ids['assistant'])
    return ids

  def render_response(self, prompt, response, tools=()):
    if response.calls:
      raise ValueError('there is no chat template that shows calls')
    return [*self._model.encode(response.text), *self.stop_ids]


def is_ours(path: str | os.PathLike[str]) -> bool:
  """Returns whether a file is a SentencePiece model with our control pieces.

  Released models may have a file of the same name beside a tokenizer.json.
  """
  try:
    SentencePieceTokenizer(path)
  except (OSError, ValueError):
    return False
  return True


def train_sentencepiece(
  texts: Iterable[str],
  path: str | os.PathLike[str],
  vocab_size: int,
  symbols: Sequence[str] = (),
) -> None:
  """Trains a BPE model with byte fallback and the control pieces.

  Args:
    texts: the corpus, in an order that is the same every time.
    path: path that the model is written to.
    vocab_size: number of pieces in all (256 of them are the bytes).
    symbols: strings that are always one piece.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    model_type='bpe',
    vocab_size=vocab_size,
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    control_symbols=[*_ROLE_PIECES, END_PIECE],
    # SentencePiece matches symbols where a space is already written so.
    user_defined_symbols=['\n', *(s.replace(' ', '\u2581') for s in symbols)],
    pad_id=0,
    unk_id=1,
    bos_id=-1,
    eos_id=-1,
    num_threads=1,
    minloglevel=2,
  )
  # Whole or not at all: a run that is killed here trains it again.
  writing.write_whole(path, model.getvalue())
