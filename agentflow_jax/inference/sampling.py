"""Draws one token a row, and scores it as the trainer will."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentflow_jax.core import logprobs, primitives

# Into how many blocks a vocabulary is divided. A power of 2: devices that share a
# vocabulary have whole ones each.
_BLOCKS = 128


@flax.struct.dataclass
class RowSampling:
  """How each row is sampled. Nothing in it depends on the other rows."""

  temperature: primitives.HostArray  # float32 [B]; 0 is greedy.
  top_k: primitives.HostArray  # int32 [B]; 0 keeps all.
  top_p: primitives.HostArray  # float32 [B]; 1 keeps all.
  min_p: primitives.HostArray  # float32 [B]; 0 keeps all.
  key_words: primitives.HostArray  # uint32 [B, 2].


def sample(
  logits: jax.Array,
  rows: RowSampling,
  index: jax.Array,
  *,
  truncates: bool,
  max_kept: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Draws token number `index` of every row's response.

  A row is drawn from with two uniform numbers, which are a function of its key
  words and `index` alone, see `_draw`; at temperature 0 the first of the most
  likely tokens is taken.

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
  uniform = jax.vmap(_uniform)(rows.key_words, index)
  tokens = jnp.where(rows.temperature == 0.0, _argmax(scaled), _draw(scaled, uniform))
  scores = logprobs.log_prob_of(logits, tokens, rows.temperature, keep)
  return tokens, scores, kept


def most_likely(
  logits: jax.Array, rows: RowSampling, kept: jax.Array | None, count: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the most likely tokens of the distributions that `sample` draws from.

  Args:
    logits: float32 [B, V].
    rows: the rows' distributions; rows may truncate.
    kept: ids that `sample` returned beside the tokens, or None.
    count: static; number of tokens to return, at most V.

  Returns:
    int32 [B, count] ids, the most likely first, and their log probabilities float32
    [B, count] [nats]; -inf outside the kept set. They are bit for bit those that
    `sample` gives the same tokens.
  """
  if kept is not None:
    keep = logprobs.mask_of(kept, logits.shape[-1])
  else:
    keep = logprobs.truncation_mask(
      logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p
    )
  return logprobs.most_likely(logits, count, rows.temperature, keep)


def _argmax(x: jax.Array) -> jax.Array:
  """Returns int32[B], the first of the largest of each row of [B, V].

  XLA's CPU fuses what makes x into a search of a whole row, an element at a time;
  it takes a third of the time to find a block of them first.
  """

  def by_blocks(x):
    x = _in_blocks(jax.lax.optimization_barrier(x))
    block = jnp.argmax(x.max(axis=2), axis=1)
    row = jnp.take_along_axis(x, block[:, None, None], axis=1)[:, 0]
    return block * x.shape[2] + jnp.argmax(row, axis=1)

  whole = functools.partial(jnp.argmax, axis=1)
  found = jax.lax.platform_dependent(x, cpu=by_blocks, default=whole)
  return found.astype(jnp.int32)


def _in_blocks(x: jax.Array) -> jax.Array:
  """Returns [B, _BLOCKS, n] of [B, V]; what is beyond V is -inf."""
  size = -(-x.shape[1] // _BLOCKS)
  room = ((0, 0), (0, _BLOCKS * size - x.shape[1]))
  x = jnp.pad(x, room, constant_values=-jnp.inf)
  return x.reshape(len(x), _BLOCKS, size)


def _draw(scaled: jax.Array, uniform: jax.Array) -> jax.Array:
  """Samples softmax(scaled) by inverting its distribution function.

  In two steps, a block of the vocabulary and then a token of it, each of which
  is exact to the 2^-23 that a uniform number resolves. Noise for every token
  (Gumbel's) would be a sample, too; hashing so many numbers took a tenth of a
  step of a model of 135M parameters on CPU.

  Args:
    scaled: float32 [B, V]; -inf is never drawn.
    uniform: float32 [B, 2], in [0, 1).

  Returns:
    int32 [B].
  """
  blocks = _in_blocks(scaled)
  top = scaled.max(axis=1)[:, None, None]
  block = _first_beyond(jnp.exp(blocks - top).sum(axis=2), uniform[:, 0])
  row = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  row = jnp.exp(row - row.max(axis=1, keepdims=True))
  return block * blocks.shape[2] + _first_beyond(row, uniform[:, 1])


def _first_beyond(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns int32 [B], where a share `uniform` of weights [B, n] is passed.

  It is never where a weight is 0, though sums may be rounded.
  """
  sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=1), 0.0)
  passed = sums > uniform[:, None] * sums.max(axis=1, keepdims=True)
  return jnp.argmax(passed, axis=1).astype(jnp.int32)


def _uniform(key_words: jax.Array, index: jax.Array) -> jax.Array:
  """Returns float32 [2] in [0, 1) of one row and token index."""
  key = jax.random.wrap_key_data(key_words, impl='threefry2x32')
  return jax.random.uniform(jax.random.fold_in(key, index), (2,), jnp.float32)
