"""The one definition of a token's log probability, for sampler and trainer.

A token is scored under the distribution that it was sampled from: logits
divided by the temperature, and renormalised over the kept set where top-k,
top-p or min-p truncated it. Temperature 0 means greedy; its tokens are scored
at temperature 1.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def scale(logits: Array, temperature: Array | float) -> Array:
  """Returns float32 logits / temperature, with temperature 0 read as 1.

  Args:
    logits: [..., V].
    temperature: [...] or a scalar; what the token was sampled at.
  """
  temperature = jnp.asarray(temperature, jnp.float32)
  temperature = jnp.where(temperature == 0, 1.0, temperature)
  return logits.astype(jnp.float32) / temperature[..., None]


def log_prob_of(
  logits: Array, targets: Array, temperature: Array | float, keep: Array | None = None
) -> Array:
  """Scores tokens: log softmax(logits / temperature over the kept set).

  Args:
    logits: float[..., V].
    targets: int32[...], the tokens scored.
    temperature: float32[...] or a scalar; 0 scores at 1.
    keep: bool[..., V], the set that was sampled from, or None for all of V.

  Returns:
    float32[...], nats. -inf for a target outside the kept set.
  """
  scaled = scale(logits, temperature)
  if keep is not None:
    scaled = jnp.where(keep, scaled, -jnp.inf)
  # A comparison and a sum, not a gather: exact, its gradient is no scatter, and
  # it needs no communication where V is sharded.
  chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
  picked = jnp.sum(jnp.where(chosen, scaled, 0.0), axis=-1)
  return picked - _log_normaliser(scaled)


def most_likely(
  logits: Array, count: int, temperature: Array | float, keep: Array | None = None
) -> tuple[Array, Array]:
  """Returns the most likely tokens, scored as `log_prob_of` scores a token.

  Args:
    logits: float[..., V].
    count: static; number of tokens to return, at most V.
    temperature: float32[...] or a scalar; 0 scores at 1.
    keep: bool[..., V], the set that was sampled from, or None for all of V.

  Returns:
    int32[..., count] ids, the most likely first (of equals the lower id), and
    their float32[..., count] log probabilities [nats]; -inf outside the kept set.
  """
  scaled = scale(logits, temperature)
  if keep is not None:
    scaled = jnp.where(keep, scaled, -jnp.inf)
  best, ids = jax.lax.top_k(scaled, count)
  return ids.astype(jnp.int32), best - _log_normaliser(scaled)[..., None]


def _log_normaliser(scaled: Array) -> Array:
  """Returns logsumexp over the last axis, rounded as `statistics` rounds it."""
  # Any shift leaves the sum as it is, so it needs no gradient.
  top = jax.lax.stop_gradient(scaled.max(axis=-1))
  return top + jnp.log(_total(jnp.exp(scaled - top[..., None])))


def statistics(
  logits: Array,
  targets: Array,
  temperature: Array,
  axis_name: str | None = None,
  kept: Array | None = None,
) -> tuple[Array, Array, Array]:
  """What log_prob_of says, and the entropy, in one pass over V.

  Args:
    logits: float32[..., V], or a mesh axis's part of it.
    targets: int32[...].
    temperature: float32[...].
    axis_name: name of the mesh axis that V is split over, inside a shard_map.
    kept: int32[..., S], the sets that were sampled from, see `mask_of`, by
      their ids in all of V; None for all of V.

  Returns:
    float32[...] each, in nats, over the kept set: log probabilities, entropies,
    and the logarithm of the sum of exp(logits / temperature). Of a target
    outside its set the first is -inf.
  """
  scaled = scale(logits, temperature)
  size = scaled.shape[-1]
  keep = None
  if kept is not None:
    keep = mask_of(kept, size, first_id(axis_name, size))
    scaled = jnp.where(keep, scaled, -jnp.inf)
  top = scaled.max(axis=-1)
  if axis_name is not None:
    top = jax.lax.pmax(top, axis_name)
  offset = first_id(axis_name, size)
  weights = jnp.exp(scaled - top[..., None])
  # Weight 0 times -inf would be NaN.
  finite = scaled if keep is None else jnp.where(keep, scaled, 0.0)
  local = targets - offset
  picked = jnp.take_along_axis(
    scaled, jnp.clip(local, 0, size - 1)[..., None], axis=-1
  )[..., 0]
  sums = jnp.stack(
    [
      _total(weights),
      _total(weights * finite),
      jnp.where((local >= 0) & (local < size), picked, 0.0),
    ]
  )
  if axis_name is not None:
    sums = jax.lax.psum(sums, axis_name)
  normaliser = top + jnp.log(sums[0])
  return sums[2] - normaliser, normaliser - sums[1] / sums[0], normaliser


def first_id(axis_name: str | None, size: int) -> Array | int:
  """Returns the first of the `size` ids of V that are here, in a shard_map."""
  return 0 if axis_name is None else jax.lax.axis_index(axis_name) * size


def _total(x: Array) -> Array:
  """Returns the sum over the last axis."""
  # XLA's CPU takes ten times as long to add up a long axis as to multiply by 1.
  return jax.lax.platform_dependent(
    x,
    cpu=lambda x: jnp.einsum(
      '...v,v->...',
      x,
      jnp.ones(x.shape[-1], x.dtype),
      precision=jax.lax.Precision.HIGHEST,
    ),
    default=lambda x: x.sum(axis=-1),
  )


def mask_of(kept: Array, size: int, offset: Array | int = 0) -> Array:
  """Returns sets of ids as a mask.

  Args:
    kept: int32[..., S], the ids of each set; -1 is no id. A set that begins
      with -1 is all of V.
    size: V, or of the part of it that begins at `offset`; other ids are left
      out.
    offset: the part's first id.

  Returns:
    bool[..., size].
  """
  local = kept.reshape(-1, kept.shape[-1]) - offset
  is_here = (local >= 0) & (local < size)
  mask = jnp.zeros((len(local), size), bool)
  mask = mask.at[jnp.arange(len(local))[:, None], jnp.where(is_here, local, size)].set(
    True, mode='drop'
  )
  return mask.reshape(*kept.shape[:-1], size) | (kept[..., :1] < 0)


def truncation_mask(
  logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array
) -> Array:
  """Returns the set that top-k, top-p and min-p leave of each distribution.

  Each criterion is applied to the whole distribution at the given temperature;
  a token is kept when all three keep it. Among equal logits the lower id
  counts as the more likely. The most likely token is always kept.

  Args:
    logits: float[B, V].
    temperature: float32[B]; 0 is read as 1.
    top_k: int32[B], keep the k most likely; 0 keeps all.
    top_p: float32[B], keep the fewest tokens, most likely first, whose mass is
      at least top_p; 1 keeps all.
    min_p: float32[B], keep tokens of at least min_p times the largest
      probability; 0 keeps all.

  Returns:
    bool[B, V].
  """
  scaled = scale(logits, temperature)
  order = jnp.argsort(-scaled, axis=-1, stable=True)
  ordered = jnp.take_along_axis(scaled, order, axis=-1)
  probs = jax.nn.softmax(ordered, axis=-1)
  keep = _criteria(probs, top_k, top_p, min_p)
  inverse = jnp.argsort(order, axis=-1)
  return jnp.take_along_axis(keep, inverse, axis=-1)


def _criteria(probs: Array, top_k: Array, top_p: Array, min_p: Array) -> Array:
  """Returns which of probs[B, n], the n most likely first, are kept."""
  rank = jnp.arange(probs.shape[-1])
  keep = (top_k[:, None] == 0) | (rank < top_k[:, None])
  # The mass before a token decides: the token that crosses top_p is kept.
  before = jnp.cumsum(probs, axis=-1) - probs
  keep &= (top_p[:, None] >= 1) | (before < top_p[:, None])
  keep &= probs >= min_p[:, None] * probs[:, :1]
  return keep | (rank == 0)


def kept_ids(
  logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, size: int
) -> Array:
  """Returns the set of `truncation_mask`, but of the `size` most likely alone.

  Nothing of V is sorted.

  Args:
    logits: float[B, V].
    temperature, top_k, top_p, min_p: the same arguments of `truncation_mask`.
    size: largest number of ids, from 1 to V. Probabilities are those over all of V: the
      sets of top_p and min_p do not depend on it.

  Returns:
    int32[B, size], the most likely first; -1 where nothing is kept.
  """
  scaled = scale(logits, temperature)
  # XLA's top_k puts 0.0 before -0.0; a sort, and who compares, does not.
  values, ids = jax.lax.top_k(jnp.where(scaled == 0, 0.0, scaled), size)
  probs = jnp.exp(values - _log_normaliser(scaled)[:, None])
  return jnp.where(_criteria(probs, top_k, top_p, min_p), ids, -1)
