"""The host's side of a batch: its layout, its programs, and how rows end."""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from agentflow_jax.core import model
from agentflow_jax.inference import api
from agentflow_jax.inference import decoding
from agentflow_jax.inference import sampling


def pack(
    requests: Sequence[api.Request], bucket: int, config: api.EngineConfig
) -> tuple[decoding.Prompts, decoding.Rows]:
  """Lays requests out as host arrays, in order, then unused rows.

  Equal prompts, as those of a group's first turn, are read once.
  """
  n, slots = len(requests), config.slots
  places = {}
  for request in requests:
    places.setdefault(request.prompt_ids, len(places))
  ids = np.zeros((slots, bucket), np.int32)
  lengths = np.ones((slots,), np.int32)
  for prompt_ids, place in places.items():
    ids[place, : len(prompt_ids)] = prompt_ids
    lengths[place] = len(prompt_ids)
  stop_ids = np.full((slots, config.max_stop_ids), decoding.NO_STOP, np.int32)
  key_words = np.zeros((slots, 2), np.uint32)
  for row, request in enumerate(requests):
    stop_ids[row, : len(request.stop_ids)] = request.stop_ids
    key_words[row] = request.key_words

  def column(fill, dtype, values):
    out = np.full((slots,), fill, dtype)
    out[:n] = values
    return out

  specs = [request.sampling for request in requests]
  rows = decoding.Rows(
      prompt=column(0, np.int32, [places[r.prompt_ids] for r in requests]),
      prompt_lengths=column(1, np.int32, [len(r.prompt_ids) for r in requests]),
      max_new_tokens=column(0, np.int32, [s.max_new_tokens for s in specs]),
      stop_ids=stop_ids,
      sampling=sampling.RowSampling(
          temperature=column(0, np.float32, [s.temperature for s in specs]),
          top_k=column(0, np.int32, [s.top_k for s in specs]),
          top_p=column(1, np.float32, [s.top_p for s in specs]),
          min_p=column(0, np.float32, [s.min_p for s in specs]),
          key_words=key_words,
      ),
  )
  prompts = decoding.Prompts(
      ids=ids, lengths=lengths, used=np.int32(len(places))
  )
  return prompts, rows


def finish(
    request: api.Request,
    ids: list[int],
    logprobs: np.ndarray,
    done: bool,
) -> tuple[int, str] | None:
  """Says whether a row has ended, and how.

  Args:
    request: the row's.
    ids: sampled so far; at least one.
    logprobs: float32 [len(ids)] [nats].
    done: whether the device saw a stop id or the last token asked for.

  Returns:
    How many ids to keep and 'stop' or 'length'; None while the row goes on.

  Raises:
    ValueError: stop_fn keeps an impossible number of ids.
    FloatingPointError: a log probability is not finite.
    Exception: whatever stop_fn raises.
  """
  keep = None if request.stop_fn is None else request.stop_fn(ids)
  if keep is not None and not 1 <= keep <= len(ids):
    raise ValueError(f'stop_fn keeps {keep} of {len(ids)} ids')
  if keep is None and not done:
    return None
  if not np.isfinite(logprobs[:keep]).all():
    raise FloatingPointError('log probabilities are not finite')
  at_stop = keep is not None or ids[-1] in request.stop_ids
  return keep or len(ids), 'stop' if at_stop else 'length'


# Shared, so that engines of equal shapes (a planner, its frozen copy) compile
# once. The key holds everything that a program is made from.
_COMPILED: dict[Any, tuple[Callable, Callable]] = {}
_COMPILING = threading.Lock()


class Programs:
  """Compiles prefill and decode ahead of time, each shape once a process.

  Compiled ahead, a call with other shapes, dtypes or shardings is an error
  rather than a silent compilation.

  Attributes:
    compilations: programs that were compiled because this object asked first.
  """

  def __init__(
      self,
      model_config: model.ModelConfig,
      config: api.EngineConfig,
      params: Any,
  ):
    """Compiles nothing yet.

    Args:
      model_config: the model.
      config: the shapes.
      params: parameters on their devices; shapes, dtypes and shardings count.
    """
    self._static = dict(model_config=model_config, config=config)
    self._config = config
    self._params = jax.tree.map(_struct, params)
    leaves, treedef = jax.tree.flatten(self._params)
    self._key = (
        model_config,
        config,
        treedef,
        tuple((x.shape, x.dtype, x.sharding) for x in leaves),
    )
    self._programs: dict[tuple[int, bool], tuple[Callable, Callable]] = {}
    self.compilations = 0

  def get(self, bucket: int, truncates: bool) -> tuple[Callable, Callable]:
    """Returns the compiled (prefill, decode) of a bucket; thread-safe.

    prefill takes (params, prompts, rows), decode (params, cache, rows,
    progress, stopped) and consumes the cache.
    """
    programs = self._programs.get((bucket, truncates))
    if programs is None:
      key = (*self._key, bucket, truncates)
      with _COMPILING:
        if key not in _COMPILED:
          _COMPILED[key] = self._compile(bucket, truncates)
        programs = self._programs[bucket, truncates] = _COMPILED[key]
    return programs

  def _compile(self, bucket, truncates):
    start = time.monotonic()
    static = dict(self._static, truncates=truncates)
    prompts, rows = jax.tree.map(_struct, pack([], bucket, self._config))
    first = jax.jit(functools.partial(decoding.prefill, **static))
    first = first.lower(self._params, prompts, rows).compile()
    self.compilations += 1
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        first.out_info,
        first.output_shardings,
    )
    more = jax.jit(
        functools.partial(decoding.decode, **static),
        donate_argnums=(1,),
        out_shardings=first.output_shardings,
    )
    more = more.lower(
        self._params,
        state[0],
        rows,
        state[1],
        jax.ShapeDtypeStruct((self._config.slots,), jnp.bool_),
    ).compile()
    self.compilations += 1
    logging.info(
        'Compiled bucket %d (truncates: %s) in %.1f s.',
        bucket,
        truncates,
        time.monotonic() - start,
    )
    return first, more


def _struct(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None)
  )
