"""Prefill and decode: the two programs of the engine, in a few fixed shapes.

A program's shape depends on the bucket of its requests' prompts and on whether
they truncate, never on how many rows are in use: a row's bits are the same
alone, in a crowd and in any slot. Prompts are padded on the right; no token
sees the padding, and the response overwrites it as it grows.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from agentflow_jax.core import model
from agentflow_jax.inference import api
from agentflow_jax.inference import sampling

NO_STOP = -1  # Fills stop_ids; no token has it.


@flax.struct.dataclass
class Prompts:
  """The distinct prompts of a batch; the rest of the B places is unused."""

  ids: jax.Array  # int32 [B, bucket]; padded on the right with 0.
  lengths: jax.Array  # int32 [B]; 1 where unused.
  used: jax.Array  # int32 [].


@flax.struct.dataclass
class Rows:
  """The requests of a batch. An unused row has max_new_tokens 0."""

  prompt: jax.Array  # int32 [B]; the row's place in Prompts.
  prompt_lengths: jax.Array  # int32 [B]; 1 in unused rows.
  max_new_tokens: jax.Array  # int32 [B].
  stop_ids: jax.Array  # int32 [B, max_stop_ids]; padded with NO_STOP.
  sampling: sampling.RowSampling


@flax.struct.dataclass
class Progress:
  """What has been sampled. All rows of a batch start together."""

  step: jax.Array  # int32 []; tokens sampled by every row that is not done.
  tokens: jax.Array  # int32 [B, N]; 0 beyond a row's length.
  logprobs: jax.Array  # float32 [B, N] [nats]; 0 beyond a row's length.
  lengths: jax.Array  # int32 [B].
  done: jax.Array  # bool [B]; at a stop id or at max_new_tokens.


def prefill(
    params: Any,
    prompts: Prompts,
    rows: Rows,
    *,
    model_config: model.ModelConfig,
    config: api.EngineConfig,
    truncates: bool,
) -> tuple[model.Cache, Progress]:
  """Reads the prompts and samples every row's first token.

  Args:
    params: the model's parameters.
    prompts: read in blocks of `prefill_rows`, as many as are used.
    rows: the requests.
    model_config: static.
    config: static.
    truncates: static; whether any row truncates.

  Returns:
    The cache, with room for the response, and the progress after one token.
  """
  bucket, block = prompts.ids.shape[1], config.prefill_rows

  def read_block(i, carry):
    cache, logits = carry
    start = i * block
    ids, lengths = (
        lax.dynamic_slice_in_dim(x, start, block)
        for x in (prompts.ids, prompts.lengths)
    )
    block_logits, block_cache = model.forward_cached(
        model_config,
        params,
        ids,
        model.init_cache(model_config, block, bucket),
        last_index=lengths - 1,
    )
    cache = jax.tree.map(
        lambda x, part: lax.dynamic_update_slice_in_dim(x, part, start, 1),
        cache,
        block_cache,
    )
    return cache, lax.dynamic_update_slice_in_dim(
        logits, block_logits, start, 0
    )

  read, logits = lax.fori_loop(
      0,
      (prompts.used + block - 1) // block,
      read_block,
      (
          model.init_cache(model_config, config.slots, bucket),
          jnp.zeros((config.slots, model_config.vocab_size), jnp.float32),
      ),
  )

  def copy_row(row, cache):
    return jax.tree.map(
        lambda x, source: lax.dynamic_update_slice(
            x,
            lax.dynamic_slice_in_dim(source, rows.prompt[row], 1, 1),
            (0, row) + (0,) * (x.ndim - 2),
        ),
        cache,
        read,
    )

  length = bucket + config.max_new_tokens
  cache = lax.fori_loop(
      0,
      config.slots,
      copy_row,
      model.init_cache(model_config, config.slots, length),
  )
  size = (config.slots, config.max_new_tokens)
  progress = Progress(
      step=jnp.int32(0),
      tokens=jnp.zeros(size, jnp.int32),
      logprobs=jnp.zeros(size, jnp.float32),
      lengths=jnp.zeros((config.slots,), jnp.int32),
      done=rows.max_new_tokens < 1,
  )
  logits = logits[rows.prompt]
  return cache, _sample_step(logits, rows, progress, truncates)


def decode(
    params: Any,
    cache: model.Cache,
    rows: Rows,
    progress: Progress,
    stopped: jax.Array,
    *,
    model_config: model.ModelConfig,
    config: api.EngineConfig,
    truncates: bool,
) -> tuple[model.Cache, Progress]:
  """Samples up to `decode_chunk` more tokens of every row that is not done.

  Args:
    params: the model's parameters.
    cache: holds all but the last token of every row.
    rows: the requests.
    progress: what has been sampled; at least one token.
    stopped: bool [B]; rows that the host has stopped.
    model_config: static.
    config: static.
    truncates: static; whether any row truncates.

  Returns:
    The cache and the progress after the chunk, sooner when all rows are done.
  """
  end = progress.step + config.decode_chunk
  progress = progress.replace(done=progress.done | stopped)

  def is_running(carry):
    _, progress = carry
    return (progress.step < end) & ~jnp.all(progress.done)

  def body(carry):
    cache, progress = carry
    last = lax.dynamic_slice_in_dim(progress.tokens, progress.step - 1, 1, 1)
    logits, cache = model.forward_cached(
        model_config,
        params,
        last,
        cache,
        cache_index=rows.prompt_lengths + progress.step - 1,
    )
    return cache, _sample_step(logits[:, 0], rows, progress, truncates)

  return lax.while_loop(is_running, body, (cache, progress))


def _sample_step(
    logits: jax.Array, rows: Rows, progress: Progress, truncates: bool
) -> Progress:
  """Appends a token to every row that is not done."""
  tokens, logprobs = sampling.sample(
      logits, rows.sampling, progress.step, truncates=truncates
  )
  live = ~progress.done
  lengths = progress.lengths + live
  at_stop = jnp.any(tokens[:, None] == rows.stop_ids, axis=1)
  return Progress(
      step=progress.step + 1,
      tokens=lax.dynamic_update_slice(
          progress.tokens,
          jnp.where(live, tokens, 0)[:, None],
          (0, progress.step),
      ),
      logprobs=lax.dynamic_update_slice(
          progress.logprobs,
          jnp.where(live, logprobs, 0.0)[:, None],
          (0, progress.step),
      ),
      lengths=lengths,
      done=progress.done | at_stop | (lengths >= rows.max_new_tokens),
  )
