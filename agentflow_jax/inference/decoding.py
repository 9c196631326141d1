"""Prefill and decode: the engine's programs, each of one shape.

A row's bits are the same alone, in a crowd and in any place: shapes do not
depend on how many rows are in use, and what another row computes counts 0 times
in it, but for the pages that they share. Prefill only fills pages, with every token of
a prompt but the last; decode reads that one, and goes on from there.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from agentflow_jax.core import model, primitives
from agentflow_jax.inference import api
from agentflow_jax.inference import gathered
from agentflow_jax.inference import pages as pages_lib
from agentflow_jax.inference import sampling

NO_STOP = -1  # Fills stop_ids; no token has it.


@flax.struct.dataclass
class Segments:
  """Pieces of prompts, C tokens each, that start where a page does.

  A piece sees older pages of its row, those that are written in the same call
  among them. An unused piece writes to SCRATCH alone.
  """

  ids: primitives.HostArray  # int32 [R, C]; padded on the right.
  starts: primitives.HostArray  # int32 [R]; slot of the first token.
  tables: primitives.HostArray  # int32 [R, M]; see pages.Cache.
  writes: primitives.HostArray  # int32 [R, C / P]; see pages.Cache.


@flax.struct.dataclass
class Rows:
  """The requests that are sampled. An unused row has `left` 0."""

  last: primitives.HostArray  # int32 [B]; the newest token, not read yet.
  positions: primitives.HostArray  # int32 [B]; its slot.
  sampled: primitives.HostArray  # int32 [B]; tokens of the response so far.
  left: primitives.HostArray  # int32 [B]; tokens that may still come.
  tables: primitives.HostArray  # int32 [B, M]; see pages.Cache.
  stop_ids: primitives.HostArray  # int32 [B, max_stop_ids]; padded with NO_STOP.
  sampling: sampling.RowSampling
  copies: pages_lib.Copies  # Up to B pages to copy first.
  common: primitives.HostArray  # int32 []; see gathered.Cache.
  common_row: primitives.HostArray  # int32 []; see gathered.Cache.


@flax.struct.dataclass
class Sampled:
  """What a chunk of decoding gave."""

  step: jax.Array  # int32 []; steps taken.
  tokens: jax.Array  # int32 [B, decode_chunk]; 0 beyond a row's length.
  logprobs: jax.Array  # float32 [B, decode_chunk] [nats]; 0 beyond it, too.
  lengths: jax.Array  # int32 [B].
  done: jax.Array  # bool [B]; at a stop id, or nothing left.
  # int32 [B, decode_chunk, max_kept], see sampling.sample; if that is recorded.
  sets: jax.Array | None = None
  # Where the most likely tokens are asked for, see sampling.most_likely.
  top_ids: jax.Array | None = None  # int32 [B, decode_chunk, n].
  top_logprobs: jax.Array | None = None  # float32 [B, decode_chunk, n] [nats].


def prefill(
  params: Any,
  pool: pages_lib.Pool,
  segments: Segments,
  *,
  model_config: model.ModelConfig,
) -> tuple[pages_lib.Pool, jax.Array]:
  """Reads pieces of prompts into their pages.

  Args:
    params: the model's parameters.
    pool: the pages.
    segments: the pieces.
    model_config: static.

  Returns:
    The pool with the pieces' pages, and bool [], whether all is finite.
  """
  cache = pages_lib.Cache(
    pool=pool,
    n_layers=model_config.n_layers,
    starts=segments.starts,
    tables=segments.tables,
    writes=segments.writes,
  )
  positions = segments.starts[:, None] + jnp.arange(segments.ids.shape[1])
  known: Any
  hidden, known = model.hidden_states_cached(
    model_config, params, segments.ids, positions, cache
  )
  return known.pool, jnp.isfinite(hidden).all()


def prefill_apart(
  params: Any,
  desk: pages_lib.Pool,
  pool: pages_lib.Pool,
  loads: pages_lib.Copies,
  segments: Segments,
  *,
  model_config: model.ModelConfig,
) -> tuple[pages_lib.Pool, jax.Array]:
  """Reads pieces of prompts into pages of a lane's own, beside other lanes.

  Args:
    params: the model's parameters.
    desk: pages of the lane; what they held does not count.
    pool: the pages, which stay as they are; `file_pages` takes the new ones there.
    loads: copies from the pool to the desk, of what the pieces see that is there
      already.
    segments: the pieces, and where on the desk their pages are.
    model_config: static.

  Returns:
    The desk with the pieces' pages, and bool [], whether all is finite.
  """
  desk = pages_lib.copy_pages(desk, model_config.n_layers, loads, pool)
  return prefill(params, desk, segments, model_config=model_config)


def file_pages(
  pool: pages_lib.Pool,
  desks: tuple[pages_lib.Pool, ...],
  copies: tuple[pages_lib.Copies, ...],
  *,
  model_config: model.ModelConfig,
) -> pages_lib.Pool:
  """Returns the pool with pages from the lanes' desks, see prefill_apart."""
  for desk, some in zip(desks, copies, strict=True):
    pool = pages_lib.copy_pages(pool, model_config.n_layers, some, desk)
  return pool


def decode(
  params: Any,
  store: pages_lib.Pool | gathered.Store,
  rows: Rows,
  pool: pages_lib.Pool | None = None,
  fresh: gathered.Fresh | None = None,
  *,
  model_config: model.ModelConfig,
  config: api.EngineConfig,
  truncates: bool,
  reading: pages_lib.Reading,
  top: int = 0,
) -> tuple[pages_lib.Pool | gathered.Store, Sampled]:
  """Samples up to `decode_chunk` tokens of every row that is used.

  Args:
    params: the model's parameters, best unrolled where `reading` says so.
    store: all but the last token of every row: the pages, or, where `reading`
      gathers, the store of them.
    rows: the requests; tables and copies count for pages, common for the store.
    pool: the pages, where rows are gathered; it stays as it is.
    fresh: rows that are to be gathered from it first.
    model_config: static.
    config: static.
    truncates: static; whether any row truncates.
    reading: static; how pages are read.
    top: static; number of the most likely tokens that are told of each position.

  Returns:
    The store with what was read, and what was sampled: sooner when all rows are
    done.
  """
  if isinstance(store, gathered.Store):
    assert pool is not None and fresh is not None
    store = gathered.gather(store, pool, fresh, dtype=model_config.dtype)
  else:
    store = pages_lib.copy_pages(store, model_config.n_layers, rows.copies)
  if reading.unrolled and 'layers' in params:
    params = model.unrolled(model_config, params)
  sampled = _nothing(rows, config, truncates, top)

  def is_running(carry):
    _, sampled, _ = carry
    return (sampled.step < config.decode_chunk) & ~jnp.all(sampled.done)

  def body(carry):
    store, sampled, last = carry
    live = ~sampled.done
    # A row that is done stays where it is, and writes nowhere.
    starts = rows.positions + sampled.lengths
    cache: Any
    hidden, cache = model.hidden_states_cached(
      model_config,
      params,
      last[:, None],
      starts[:, None],
      _cache(store, rows, starts, live, model_config, config, reading),
    )
    logits = model.unembed(model_config, params, hidden[:, 0])
    tokens, logprobs, sets = sampling.sample(
      logits,
      rows.sampling,
      rows.sampled + sampled.lengths,
      truncates=truncates,
      max_kept=config.max_kept,
    )
    most_likely = None
    if top:
      most_likely = sampling.most_likely(logits, rows.sampling, sets, top)
    sampled = _appended(sampled, rows, live, tokens, logprobs, sets, most_likely)
    store = cache.store if isinstance(cache, gathered.Cache) else cache.pool
    return store, sampled, jnp.where(live, tokens, last)

  store, sampled, _ = lax.while_loop(is_running, body, (store, sampled, rows.last))
  return store, sampled


def _cache(
  store: pages_lib.Pool | gathered.Store,
  rows: Rows,
  starts: jax.Array,
  live: jax.Array,
  model_config: model.ModelConfig,
  config: api.EngineConfig,
  reading: pages_lib.Reading,
) -> pages_lib.Cache | gathered.Cache:
  """Returns what the model reads and writes in one step of `decode`.

  Args:
    store, rows, model_config, config, reading: those of `decode`.
    starts: int32[B], slot of each row's next token.
    live: bool[B], False for rows that write nowhere.
  """
  if isinstance(store, gathered.Store):
    return gathered.Cache(
      store=store,
      starts=starts,
      live=live,
      common=rows.common if reading.shares else None,
      row=rows.common_row,
      kv_dtype=config.kv_dtype,
    )
  page = jnp.take_along_axis(
    rows.tables, (starts // config.page_tokens)[:, None], axis=1
  )
  return pages_lib.Cache(
    pool=store,
    n_layers=model_config.n_layers,
    starts=starts,
    tables=rows.tables,
    writes=jnp.where(live[:, None], page, pages_lib.SCRATCH),
    reading=reading,
  )


def _nothing(
  rows: Rows, config: api.EngineConfig, truncates: bool, top: int
) -> Sampled:
  """Returns what a chunk has sampled before its first step."""
  (n_rows,) = rows.last.shape
  size = (n_rows, config.decode_chunk)
  sets = None
  if truncates and config.max_kept:
    sets = jnp.full((*size, config.max_kept), -1, jnp.int32)
  return Sampled(
    step=jnp.int32(0),
    tokens=jnp.zeros(size, jnp.int32),
    logprobs=jnp.zeros(size, jnp.float32),
    lengths=jnp.zeros((n_rows,), jnp.int32),
    done=rows.left < 1,
    sets=sets,
    top_ids=jnp.zeros((*size, top), jnp.int32) if top else None,
    top_logprobs=jnp.zeros((*size, top), jnp.float32) if top else None,
  )


def _appended(
  sampled: Sampled,
  rows: Rows,
  live: jax.Array,
  tokens: jax.Array,
  logprobs: jax.Array,
  sets: jax.Array | None,
  most_likely: tuple[jax.Array, jax.Array] | None,
) -> Sampled:
  """Returns what was sampled with one more step.

  Args:
    sampled: tokens of the steps before, and what is recorded of them.
    rows: the requests.
    live: bool[rows], those that were not done before the step.
    tokens: int32[rows], tokens of the step.
    logprobs: float32[rows], log probabilities of them [nats].
    sets: int32[rows, max_kept], what they were drawn from; None for all tokens.
    most_likely: int32[rows, n] ids of the most likely tokens and their log
      probabilities, float32[rows, n] [nats]; None where no row asks for
      them.
  """
  lengths = sampled.lengths + live
  at_stop = jnp.any(tokens[:, None] == rows.stop_ids, axis=1)

  def appended(x, new):
    new = jnp.where(live, new, 0)[:, None]
    return lax.dynamic_update_slice(x, new, (0, sampled.step))

  def placed(x, new):
    return lax.dynamic_update_slice(x, new[:, None], (0, sampled.step, 0))

  done = sampled.done | at_stop | (lengths >= rows.left)
  all_sets, top = sampled.sets, (sampled.top_ids, sampled.top_logprobs)
  if all_sets is not None and sets is not None:
    all_sets = placed(all_sets, sets)
  if most_likely is not None:
    top = tuple(map(placed, top, most_likely))
  return Sampled(
    step=sampled.step + 1,
    tokens=appended(sampled.tokens, tokens),
    logprobs=appended(sampled.logprobs, logprobs),
    lengths=lengths,
    done=done,
    sets=all_sets,
    top_ids=top[0],
    top_logprobs=top[1],
  )
