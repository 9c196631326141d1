"""The reference engine: batches that begin and end together.

Tests and experiments/benchmarks/generate.py compare `engine` with it.

It is what a first engine is, done well: equal prompts of a batch are read once,
in blocks of a few rows by the trainer's attention over blocks, as long as the
longest of the batch and as many at a time as there are cores (XLA's CPU computes
attention on one); and then every row is decoded until the last one ends. Nothing
outlives a batch.
"""

import dataclasses
import functools
import math
import os
import time
from concurrent import futures
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from agentflow_jax.core import attention
from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import model
from agentflow_jax.core import primitives
from agentflow_jax.inference import api
from agentflow_jax.inference import sampling


# Prompts are padded to multiples of it: what attention's blocks hold.
_BUCKET = 128


def _padded(length: int) -> int:
  return -(-length // _BUCKET) * _BUCKET


@flax.struct.dataclass
class _Cache:
  """A core.model.Cache of S slots a row: [L, K, B, E, S] and [L, K, B, S, E]."""

  keys: jax.Array
  values: jax.Array
  lengths: jax.Array  # int32 [B]: of prompts, or slots that are filled.

  def attend(self, dtype, layer, q, k, v):
    fill = self._read if q.shape[3] > 1 else self._decode
    return fill(dtype, layer, q, k, v)

  def _read(self, dtype, layer, q, k, v):
    length = q.shape[3]
    ends = jnp.where(
      jnp.arange(length) < self.lengths[:, None], self.lengths[:, None], 0
    )
    blocks = blocks_lib.blocks_of(length, 'blocks')
    assert blocks is not None
    y = attention.attend_blocks(q, k, v, ends, blocks=blocks, dtype=dtype)
    put = lambda x, new: lax.dynamic_update_slice(
      x, new.swapaxes(0, 1)[None], (layer, 0, 0, 0, 0)
    )
    return y, dataclasses.replace(
      self, keys=put(self.keys, k), values=put(self.values, v)
    )

  def _decode(self, dtype, layer, q, k, v):
    def put(row, cache):
      keys, values = cache
      at = self.lengths[row]
      one = lambda x: lax.dynamic_slice_in_dim(x, row, 1).swapaxes(0, 1)[None]
      return (
        lax.dynamic_update_slice(keys, one(k), (layer, 0, row, 0, at)),
        lax.dynamic_update_slice(values, one(v), (layer, 0, row, at, 0)),
      )

    all_keys, all_values = lax.fori_loop(0, q.shape[0], put, (self.keys, self.values))
    keys = lax.dynamic_index_in_dim(all_keys, layer, keepdims=False)
    values = lax.dynamic_index_in_dim(all_values, layer, keepdims=False)
    product = functools.partial(primitives.float32_product, dtype)
    scores = product('kbge,kbes->kbgs', q[:, :, :, 0].swapaxes(0, 1), keys)
    seen = jnp.arange(keys.shape[3]) <= self.lengths[:, None, None]
    weights = jax.nn.softmax(
      jnp.where(seen, scores / math.sqrt(q.shape[-1]), blocks_lib.MASKED)
    )
    y = product('kbgs,kbse->kbge', weights.astype(dtype), values)
    return y.swapaxes(0, 1)[:, :, :, None], dataclasses.replace(
      self, keys=all_keys, values=all_values
    )


class SimpleEngine:
  """Samples batches of up to `slots` requests.

  Attributes:
    read_tokens: number of prompt tokens that were read, in all calls; equal prompts of
      a batch count once.
    read_seconds: time that this took [s].
  """

  def __init__(
    self,
    config: model.ModelConfig,
    params: model.Params,
    *,
    slots: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    prefill_rows: int = 2,
  ):
    """Compiles when it is first used, and for every multiple of 128 tokens."""
    self._config, self._params = config, params
    self._slots, self._rows = slots, prefill_rows
    self._length = _padded(max_prompt_tokens) + max_new_tokens  # Of a row.
    self.read_tokens, self.read_seconds = 0, 0.0
    self._prefill = jax.jit(self._read_block)
    self._put = jax.jit(self._put_rows, donate_argnums=0)
    self._cache: _Cache | None = None  # Of the batch before, to be overwritten.
    self._decode = jax.jit(self._step, static_argnames='truncates', donate_argnums=1)

  def _empty(self, rows: int, slots: int) -> _Cache:
    config = self._config
    lead = (config.n_layers, config.n_kv_heads, rows)
    return _Cache(
      keys=jnp.zeros((*lead, config.head_dim, slots), config.dtype),
      values=jnp.zeros((*lead, slots, config.head_dim), config.dtype),
      lengths=jnp.zeros(rows, jnp.int32),
    )

  def _read_block(self, params, ids, lengths):
    cache = dataclasses.replace(self._empty(*ids.shape), lengths=lengths)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    _, cache = model.hidden_states_cached(self._config, params, ids, positions, cache)
    return cache

  def _put_rows(self, cache, part, places, count):
    """Returns the cache with rows of another: int32[B, 2], from and to."""

    def one(i, cache):
      old, new = places[i]
      put = lambda axis, x, y: lax.dynamic_update_slice(
        x,
        lax.dynamic_slice_in_dim(y, old, 1, axis),
        [new if a == axis else 0 for a in range(x.ndim)],
      )
      return _Cache(
        keys=put(2, cache.keys, part.keys),
        values=put(2, cache.values, part.values),
        lengths=put(0, cache.lengths, part.lengths),
      )

    return lax.fori_loop(0, count, one, cache)

  def _step(self, params, cache, last, rows, index, *, truncates):
    known: Any
    hidden, known = model.hidden_states_cached(
      self._config, params, last[:, None], cache.lengths[:, None], cache
    )
    logits = model.unembed(self._config, params, hidden[:, 0])
    tokens, logprobs, _ = sampling.sample(
      logits, rows, jnp.full(last.shape, index), truncates=truncates
    )
    return (dataclasses.replace(known, lengths=known.lengths + 1), tokens, logprobs)

  def _read(self, requests: list[api.Request]) -> _Cache:
    """Reads all prompts but their last tokens."""
    start, rows = time.perf_counter(), {}  # Of each prompt.
    for row, request in enumerate(requests):
      rows.setdefault(request.prompt_ids, []).append(row)
    prompts = list(rows)
    prompts += [(0,)] * (-len(prompts) % self._rows)
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), _padded(longest)), np.int32)
    for i, prompt in enumerate(prompts):
      ids[i, : len(prompt)] = prompt
    lengths = np.array([len(p) - 1 for p in prompts], np.int32)

    def read(i):
      block = slice(i, i + self._rows)
      return jax.block_until_ready(
        self._prefill(self._params, ids[block], lengths[block])
      )

    cache, self._cache = self._cache, None
    if cache is None:
      cache = self._empty(self._slots, self._length)
    firsts = range(0, len(prompts), self._rows)
    with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
      for first, part in zip(firsts, threads.map(read, firsts)):
        pairs = [
          (i, row)
          for i, prompt in enumerate(prompts[first : first + self._rows])
          for row in rows.get(prompt, ())
        ]
        places = np.zeros((self._slots, 2), np.int32)
        places[: len(pairs)] = pairs
        cache = jax.block_until_ready(self._put(cache, part, places, len(pairs)))
    self.read_tokens += sum(map(len, rows))
    self.read_seconds += time.perf_counter() - start
    return cache

  def generate(
    self, requests: list[api.Request]
  ) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Returns each request's ids and log probabilities."""
    n = len(requests)
    cache = self._read(requests)
    fill = lambda values, rest: np.array(list(values) + [rest] * (self._slots - n))
    specs = [r.sampling for r in requests]
    rows = sampling.RowSampling(
      temperature=fill((s.temperature for s in specs), 0).astype(np.float32),
      top_k=fill((s.top_k for s in specs), 0).astype(np.int32),
      top_p=fill((s.top_p for s in specs), 1).astype(np.float32),
      min_p=fill((s.min_p for s in specs), 0).astype(np.float32),
      key_words=fill((r.key_words for r in requests), (0, 0)).astype(np.uint32),
    )
    last = fill((r.prompt_ids[-1] for r in requests), 0).astype(np.int32)
    found = [([], []) for _ in requests]
    open_rows = set(range(n))
    for index in range(max(s.max_new_tokens for s in specs)):
      cache, last, logprobs = self._decode(
        self._params,
        cache,
        last,
        rows,
        index,
        truncates=any(s.truncates for s in specs),
      )
      for i in sorted(open_rows):
        ids, scores = found[i]
        ids.append(int(last[i]))
        scores.append(float(logprobs[i]))
        stop_fn = requests[i].stop_fn
        keep = stop_fn and stop_fn(ids)
        if (
          keep or ids[-1] in requests[i].stop_ids or len(ids) == specs[i].max_new_tokens
        ):
          found[i] = ids[:keep], scores[:keep]
          open_rows.remove(i)
      if not open_rows:
        break
    self._cache = cache
    return [(tuple(ids), tuple(scores)) for ids, scores in found]
