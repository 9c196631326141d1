"""Draws one token a row, and scores it as the trainer will."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentflow_jax.core import logprobs

_BLOCK = 128  # Tokens that `_argmax` looks at at a time.


@flax.struct.dataclass
class RowSampling:
  """How each row is sampled. Nothing in it depends on the other rows."""

  temperature: jax.Array  # float32 [B]; 0 is greedy.
  top_k: jax.Array  # int32 [B]; 0 keeps all.
  top_p: jax.Array  # float32 [B]; 1 keeps all.
  min_p: jax.Array  # float32 [B]; 0 keeps all.
  key_words: jax.Array  # uint32 [B, 2].


def sample(
    logits: jax.Array,
    rows: RowSampling,
    index: jax.Array,
    *,
    truncates: bool,
    max_kept: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Draws token number `index` of every row's response.

  The Gumbel-max draw argmax_v (logits_v / temperature + g_v), g_v independent,
  is a sample of the softmax; without noise it is the greedy token. The noise is
  a function of the row's key words and `index` alone.

  Args:
    logits: float32 [B, V].
    rows: the rows' distributions.
    index: int32 [B]; tokens that each response already holds.
    truncates: whether any row sets top_k, top_p or min_p. Static: only then is
      anything of the vocabulary sorted. The draw of a row that truncates nothing
      does not depend on it.
    max_kept: static; how many ids a row that truncates keeps at most, the most
      likely ones, and returns. 0: as many as its spec keeps, and returns none.

  Returns:
    tokens int32 [B] and their log probabilities float32 [B] [nats], as
    `core.logprobs` scores them: at the row's temperature (1 where greedy), over
    the kept tokens. And those, int32 [B, max_kept], the most likely first, then
    -1 (which alone is there in a row that truncates nothing); None where
    nothing truncates or max_kept is 0.
  """
  scaled = logprobs.scale(logits, rows.temperature)
  keep = kept = None
  if truncates:
    spec = rows.temperature, rows.top_k, rows.top_p, rows.min_p
    if max_kept:
      some = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0)
      kept = logprobs.kept_ids(logits, *spec, max_kept)
      kept = jnp.where(some[:, None], kept, -1)
      # From the ids, as the trainer does it.
      keep = logprobs.mask_of(kept, logits.shape[-1])
    else:
      keep = logprobs.truncation_mask(logits, *spec)
    scaled = jnp.where(keep, scaled, -jnp.inf)
  noise = jax.vmap(_gumbel, in_axes=(0, 0, None))(
      rows.key_words, index, logits.shape[-1]
  )
  noise = jnp.where(rows.temperature[:, None] == 0.0, 0.0, noise)
  tokens = _argmax(scaled + noise)
  scores = logprobs.log_prob_of(logits, tokens, rows.temperature, keep)
  return tokens, scores, kept


def _argmax(x: jax.Array) -> jax.Array:
  """Returns int32[B], the first of the largest of each row of [B, V].

  XLA's CPU fuses what makes x into a search of a whole row, an element at a time;
  it takes a third of the time to find a block of them first.
  """

  def by_blocks(x):
    x = jax.lax.optimization_barrier(x).reshape(len(x), -1, _BLOCK)
    block = jnp.argmax(x.max(axis=2), axis=1)
    row = jnp.take_along_axis(x, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + jnp.argmax(row, axis=1)

  whole = functools.partial(jnp.argmax, axis=1)
  if x.shape[1] % _BLOCK:
    found = whole(x)
  else:
    found = jax.lax.platform_dependent(x, cpu=by_blocks, default=whole)
  return found.astype(jnp.int32)


def _gumbel(key_words: jax.Array, index: jax.Array, size: int) -> jax.Array:
  """Standard Gumbel noise float32 [size] of one row and token index."""
  key = jax.random.wrap_key_data(key_words, impl='threefry2x32')
  return jax.random.gumbel(
      jax.random.fold_in(key, index), (size,), jnp.float32
  )
