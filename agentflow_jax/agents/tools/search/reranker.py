"""Orders passages by meaning: cosine similarity of an endpoint's embeddings."""

import collections
from collections.abc import Sequence

import numpy as np

from agentflow_jax import records
from agentflow_jax.agents.endpoints import client as client_lib
from agentflow_jax.agents.tools import base

# Embedding models read some thousand tokens, and refuse what is longer.
_MOST_CHARACTERS = 6000
_KEPT = 10_000


class Ranker:
  """Asks an endpoint for vectors, and keeps those of passages.

  Args:
    client: client of the endpoint; its maker closes it.
    query_prefix: text before a query, as some embedding models want it.
    passage_prefix: text before a passage.
    kept: number of passages whose vectors are kept, those that were last asked for.
  """

  def __init__(
    self,
    client: client_lib.EndpointClient,
    *,
    query_prefix: str = '',
    passage_prefix: str = '',
    kept: int = _KEPT,
  ):
    self._client, self._kept = client, kept
    self._query_prefix, self._passage_prefix = query_prefix, passage_prefix
    self._vectors: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()

  @property
  def version(self) -> str:
    """What an order depends on besides the texts."""
    return f'{self._client.name} {self._query_prefix!r} {self._passage_prefix!r}'

  async def order(self, query: str, texts: Sequence[str]) -> list[int]:
    """Returns the indices of `texts`, the most similar to `query` first.

    Equally similar ones keep their order.

    Raises:
      language_model.Unreachable, endpoint.Refused: as the endpoint has it.
    """
    passages = [self._passage_prefix + t[:_MOST_CHARACTERS] for t in texts]
    # Taken now: meanwhile others may make room.
    found = {p: self._vectors[p] for p in passages if p in self._vectors}
    unknown = [p for p in dict.fromkeys(passages) if p not in found]
    asked = self._query_prefix + query[:_MOST_CHARACTERS]
    key = base.request_key.get() or records.RequestKey(
      0, records.Purpose.SOLVE, 0, query, 0, module='tool/search'
    )
    vectors = _normalised(await self._client.embed([asked, *unknown], key))
    found |= zip(unknown, vectors[1:])
    for passage, vector in found.items():
      self._vectors[passage] = vector
      self._vectors.move_to_end(passage)
    while len(self._vectors) > self._kept:
      self._vectors.popitem(last=False)
    similarity = np.stack([found[p] for p in passages]) @ vectors[0]
    return np.argsort(-similarity, kind='stable').tolist()


def _normalised(vectors: np.ndarray) -> np.ndarray:
  """float32 [N, D] of length 1; a vector of zeros stays, and is like nothing."""
  norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.where(norms > 0, norms, 1)
