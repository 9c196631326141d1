"""What is asked of a server that samples, and how its answers are read.

A server is not trusted: an answer that lacks something, or that contradicts what was
asked, is an error, and never a shorter response.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentflow_jax.inference import api


class BadAnswer(Exception):
  """An answer that is not what was asked for; the text says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Call:
  """One HTTP request.

  Attributes:
    path: path and query of the address, from its first slash.
    body: JSON of the request; None sends a GET request.
    check: function that raises `BadAnswer` where an answer of status 200 reports a
      failure.
    retries: number of further attempts where `check` fails.
  """

  path: str
  body: Mapping[str, Any] | None = None
  check: Callable[[Any], None] = lambda answer: None
  retries: int = 0


@dataclasses.dataclass(frozen=True)
class Sampled:
  """What a server sampled.

  Attributes:
    ids: token ids as they were sampled.
    logprobs: log probability of each id under the distribution that it was drawn
      from [nats].
    is_cut: whether the limit of new tokens ended the response.
    versions: names of the weights that sampled, as the server calls them; empty where
      it does not say.
    kept: sets of ids that the tokens were drawn from; None where the server returned
      none.
  """

  ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  is_cut: bool
  versions: tuple[str, ...] = ()
  kept: tuple[tuple[int, ...], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Scored:
  """Log probabilities that a server gives to ids.

  Attributes:
    logprobs: log probability of each id but the first, at temperature 1 [nats].
    versions: names of the weights that scored, see Sampled.
  """

  logprobs: tuple[float, ...]
  versions: tuple[str, ...] = ()


class Server(Protocol):
  """The requests of one kind of server.

  `model` is the name of the model, or of the adapter, that is asked.
  """

  def health(self) -> Call:
    """Returns a request that succeeds once the server can be asked."""
    ...

  def sample(self, request: api.Request, model: str, max_kept: int) -> Call:
    """Returns the request for one response.

    Args:
      request: request to sample.
      model: name of the model.
      max_kept: number of ids that are recorded with each token where the request
        truncates.
    """
    ...

  def read_sample(self, answer: Any, request: api.Request) -> Sampled:
    """Reads its answer; raises BadAnswer."""
    ...

  def score(self, ids: Sequence[int], model: str) -> Call:
    """Returns the request for the log probabilities of ids at temperature 1."""
    ...

  def read_score(self, answer: Any, ids: Sequence[int]) -> Scored:
    """Reads its answer; raises BadAnswer."""
    ...

  def load(self, path: str, label: str) -> tuple[Sequence[Call], Sequence[Call]]:
    """Returns the requests that load weights, and those that follow in any case.

    Args:
      path: directory of the weights, as the server sees it.
      label: name of the weights.
    """
    ...

  def load_adapter(self, path: str, label: str) -> Sequence[Call]:
    """Returns the requests that load an adapter under its name."""
    ...

  def unload_adapter(self, label: str) -> Sequence[Call]:
    """Returns the requests that forget an adapter."""
    ...


def seed_of(request: api.Request) -> int:
  """Returns a request's seed, which fits into 63 bits."""
  high, low = request.key_words
  return (high << 32 | low) >> 1


def top_k_of(request: api.Request, max_kept: int) -> int:
  """Returns the top_k of a request whose sets must fit into `max_kept` ids.

  0 keeps all.
  """
  sampling = request.sampling
  if not sampling.truncates:
    return 0
  bounds = [k for k in (sampling.top_k, max_kept) if k]
  return min(bounds, default=0)


def get(value: Any, *path: str | int) -> Any:
  """Returns what is at a path of keys and places; raises BadAnswer."""
  at = value
  for i, key in enumerate(path):
    try:
      if isinstance(key, str) != isinstance(at, Mapping):
        raise TypeError
      at = at[key]
    except (KeyError, IndexError, TypeError) as e:
      where = '.'.join(map(str, path[: i + 1]))
      raise BadAnswer(f'the answer has no {where}') from e
  return at


def ids_of(value: Any, name: str) -> tuple[int, ...]:
  """Returns a list of token ids; raises BadAnswer."""
  if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
    raise BadAnswer(f'{name} is no list of token ids')
  return tuple(value)


def logprobs_of(values: Sequence[Any], name: str) -> tuple[float, ...]:
  """Returns log probabilities; raises BadAnswer where one is none."""
  for value in values:
    if type(value) not in (int, float) or not math.isfinite(value) or value > 1e-3:
      raise BadAnswer(f'{name} holds {value!r}, which is no log probability')
  return tuple(float(v) for v in values)


def versions_of(value: Any) -> tuple[str, ...]:
  """Returns the names of weights in a list of spans, or nothing."""
  if not isinstance(value, list):
    return ()
  found = dict.fromkeys(str(get(span, 'version')) for span in value)
  return tuple(found)


def succeeded(answer: Any) -> None:
  """Raises BadAnswer where an answer says that it failed, or does not say."""
  if not isinstance(answer, Mapping) or answer.get('success') is not True:
    said = answer.get('message', '') if isinstance(answer, Mapping) else ''
    raise BadAnswer(f'it reports no success: {str(said)[:200]}')


def check_sampled(sampled: Sampled, request: api.Request, vocab_size: int) -> None:
  """Refuses a response that the request could not have.

  Where a stop ends a response is looked for by the caller, behind this.

  Raises:
    BadAnswer: the ids leave the vocabulary, there are too many or none of them, or
      lists that belong together have different lengths.
  """
  most = request.sampling.max_new_tokens
  if not 0 < len(sampled.ids) <= most:
    raise BadAnswer(f'{len(sampled.ids)} ids, where 1 to {most} were asked for')
  if max(sampled.ids) >= vocab_size:
    raise BadAnswer(
      f'id {max(sampled.ids)} is outside of the vocabulary [0, {vocab_size})'
    )
  if len(sampled.logprobs) != len(sampled.ids):
    raise BadAnswer(
      f'{len(sampled.ids)} ids and {len(sampled.logprobs)} log probabilities'
    )
  if sampled.is_cut and len(sampled.ids) < most:
    raise BadAnswer(
      f'the answer ended for its length after {len(sampled.ids)} of {most} tokens: is'
      ' the context of the server (--max-model-len, --context-length) too short?'
    )
  if not request.sampling.truncates:
    return
  if sampled.kept is None:
    raise BadAnswer(
      'there are no sets of ids that the tokens were drawn from, which top_k, top_p and'
      ' min_p need'
    )
  if len(sampled.kept) != len(sampled.ids):
    raise BadAnswer(f'{len(sampled.ids)} ids and {len(sampled.kept)} sets')
  for place, (token, kept) in enumerate(zip(sampled.ids, sampled.kept, strict=True)):
    if token not in kept:
      raise BadAnswer(f'id {token} at {place} is not in the set it was drawn from')
    if max(kept) >= vocab_size:
      raise BadAnswer(f'the set at {place} leaves the vocabulary')
