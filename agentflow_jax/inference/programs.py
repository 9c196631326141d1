"""The compiled programs of prefill and decode, and their access to pages."""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from absl import logging

from agentflow_jax.core import blocks, model
from agentflow_jax.inference import api, batching, choices, decoding, gathered
from agentflow_jax.inference import kernels, pages as pages_lib

# Slots of rows that are gone over whole, and not as far as the longest one is.
_MAX_GATHERED = 4096

# Shared, so that engines of equal shapes (a planner, its frozen copy) compile
# once. The key holds everything that a program is made from.
_COMPILED: dict[Any, Callable] = {}

# Fields that no program is made from, or that are in the name of the one that is.
_OF_NO_PROGRAM = {
  'prefix_cache': True,
  'prefill_burst': 1,
  'read_share': 1.0,
  'coalesce_share': 0.0,
  'max_kept': 0,
}

_COMPILING = threading.Lock()


class Programs:
  """Compiles prefill and decode ahead of time, each once a process.

  Compiled ahead, a call with other shapes, dtypes or shardings is an error
  rather than a silent compilation.

  Attributes:
    reading: access of decoding to the pages.
    compilations: programs that were compiled because this object asked first.
  """

  def __init__(
    self,
    model_config: model.ModelConfig,
    config: api.EngineConfig,
    params: Any,
    pool: pages_lib.Pool,
    reading: pages_lib.Reading,
  ):
    """Compiles nothing yet.

    Args:
      model_config: the model.
      config: the shapes.
      params: parameters on their devices; shapes, dtypes and shardings count.
      pool: the pages, likewise.
      reading: access of decoding to the pages; where it is unrolled, the
        parameters must be unrolled, too.
    """
    self.reading = reading
    self._model_config, self._config = model_config, config
    self._arrays = jax.tree.map(_struct, (params, pool))
    leaves, treedef = jax.tree.flatten(self._arrays)
    self._key = (
      model_config,
      dataclasses.replace(config, **_OF_NO_PROGRAM),
      treedef,
      tuple((x.shape, x.dtype, x.sharding) for x in leaves),
    )
    self.compilations = 0
    self._found: dict[str, Callable] = {}

  def prefill(self) -> Callable:
    """Returns what reads pieces of prompts, and consumes where it writes.

    It takes (params, pool, segments), or, in one of several lanes,
    (params, desk, pool, loads, segments), see decoding.prefill_apart.
    """

    def program():
      (params, pool), lanes = self._arrays, self.reading.lanes
      if lanes == 1:
        function = decoding.prefill
        arrays = params, pool, batching.pack_pieces([], self._config)
      else:
        function = decoding.prefill_apart
        loads, segments, _ = batching.pack_apart([], self._config, lanes)
        arrays = params, self.desk_shapes(), pool, loads, segments
      jitted = jax.jit(
        functools.partial(function, model_config=self._model_config),
        donate_argnums=1,
        out_shardings=(_shardings(arrays[1]), None),
      )
      return jitted, arrays

    return self._get('prefill', program)

  def file_pages(self) -> Callable:
    """Returns what takes (pool, desks, copies), and consumes the pool.

    See decoding.file_pages.
    """

    def program():
      (_, pool), lanes = self._arrays, self.reading.lanes
      _, _, copies = batching.pack_apart([], self._config, lanes)
      jitted = jax.jit(
        functools.partial(decoding.file_pages, model_config=self._model_config),
        donate_argnums=0,
        out_shardings=_shardings(pool),
      )
      return jitted, (pool, (self.desk_shapes(),) * lanes, (copies,) * lanes)

    return self._get('pages from desks', program)

  def make_desk(self) -> pages_lib.Pool:
    """Returns pages for a lane to read pieces into."""

    def program():
      where = _shardings(self.desk_shapes())
      return jax.jit(self._empty_desk(), out_shardings=where), ()

    return self._get('desk', program)()

  def _empty_desk(self) -> Callable[[], pages_lib.Pool]:
    config = self._config
    assert config.prefill_pieces is not None
    pieces = config.prefill_pieces // self.reading.lanes
    return functools.partial(
      pages_lib.make_pool,
      self._model_config,
      1 + pieces * config.table_pages,
      config.page_tokens,
      config.kv_dtype,
    )

  def desk_shapes(self) -> pages_lib.Pool | None:
    """Returns the shapes of a lane's desk; None where there is one lane."""
    return None if self.reading.lanes == 1 else self._like_pool(self._empty_desk())

  def decode(self, truncates: bool, with_top: bool = False) -> Callable:
    """Returns what samples a chunk, see decoding.decode; it consumes the store.

    It takes (params, pool, rows), or, where rows are gathered,
    (params, store, rows, pool, fresh).

    Args:
      truncates: whether a row may set top_k, top_p or min_p.
      with_top: whether the most likely tokens of each position are returned.
    """
    most = min(api.MAX_TOP_LOGPROBS, self._model_config.vocab_size)

    def program():
      (params, pool), store = self._arrays, self.store_shapes()
      rows = batching.pack_rows([], self._config, self.reading)
      if store is None:
        arrays, where = (params, pool, rows), _shardings(pool)
      else:
        fresh = batching.pack_fresh([], self._config, self.reading)
        arrays, where = (params, store, rows, pool, fresh), _shardings(store)
      function = functools.partial(
        decoding.decode,
        model_config=self._model_config,
        config=self._config,
        truncates=truncates,
        reading=self.reading,
        top=most if with_top else 0,
      )
      jitted = jax.jit(function, donate_argnums=1, out_shardings=(where, None))
      return jitted, arrays

    name = f'decode, truncates: {truncates}'
    if truncates and self._config.max_kept:
      name += f', sets of {self._config.max_kept}'
    if with_top:
      name += f', top {most}'
    return self._get(name, program)

  def make_store(self) -> gathered.Store:
    """Returns what a lane keeps at first."""

    def program():
      where = _shardings(self.store_shapes())
      return jax.jit(self._empty(), out_shardings=where), ()

    return self._get('room for rows', program)()

  def _empty(self) -> Callable[[], gathered.Store]:
    config = self._config
    return functools.partial(
      gathered.make_store,
      self._model_config,
      config.slots // self.reading.lanes,
      config.table_pages * config.page_tokens,
    )

  def store_shapes(self) -> gathered.Store | None:
    """Returns the shapes of what a lane keeps, split as the pages are.

    None where pages are read where they lie.
    """
    if self.reading.way != 'gathered':
      return None
    return self._like_pool(self._empty())

  def _like_pool(self, make: Callable[[], Any]) -> Any:
    """Returns the shapes of what `make` makes, split as the pages are."""
    where = self._arrays[1].keys.sharding
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      jax.eval_shape(make),
    )

  def _get(
    self, name: str, program: Callable[[], tuple[Callable, Sequence[Any]]]
  ) -> Callable:
    """Returns a compiled function; cheap from the second time on.

    Args:
      name: name of the program, unique within this object.
      program: returns it jitted, and the arrays, or their shapes, that it takes.
    """
    if name not in self._found:
      key = (*self._key, name)
      with _COMPILING:
        if key not in _COMPILED:
          start = time.monotonic()
          function, arrays = program()
          _COMPILED[key] = function.lower(
            *(jax.tree.map(_struct, x) for x in arrays)
          ).compile()
          self.compilations += 1
          logging.info('Compiled %s in %.1f s.', name, time.monotonic() - start)
        self._found[name] = _COMPILED[key]
    return self._found[name]


def settled(
  model_config: model.ModelConfig,
  config: api.EngineConfig,
  sharding: jax.sharding.Sharding,
  platform: str = '',
) -> api.EngineConfig:
  """Returns a config in which nothing is left open, see inference.choices.

  Args:
    model_config: network that is sampled from.
    config: shapes and timing.
    sharding: sharding of the pages.
    platform: kind of the device that will sample; '' for that of the sharding.

  Raises:
    ValueError: config.attention asks for a kernel that there is not.
  """
  device = next(iter(sharding.device_set))
  way, alone = _way(model_config, config, device), len(sharding.device_set) == 1
  return choices.chosen(
    config,
    model_config,
    platform or device.platform,
    can_have_lanes=way == 'gathered' and alone,
  )


def reading_of(
  model_config: model.ModelConfig,
  config: api.EngineConfig,
  sharding: jax.sharding.Sharding,
) -> pages_lib.Reading:
  """Returns how pages that lie so are read.

  Args:
    model_config: network that is sampled from.
    config: shapes and timing, see `settled`.
    sharding: sharding of the pages.

  Raises:
    ValueError: config.attention asks for a kernel that there is not, or
      config.lanes for lanes.
  """
  assert config.lanes is not None
  device = next(iter(sharding.device_set))
  way = _way(model_config, config, device)
  mesh = getattr(sharding, 'mesh', None)
  alone = len(sharding.device_set) == 1
  if config.lanes > 1 and not (way == 'gathered' and alone):
    raise ValueError(
      f'lanes={config.lanes}: only on one device and where rows are'
      f" gathered; here {len(sharding.device_set)} device(s) read by '{way}':"
      ' take 1'
    )
  return pages_lib.Reading(
    way=way,
    # A TPU's products read a stack where it lies, and it compiles once.
    unrolled=way == 'gathered' or device.platform != 'tpu',
    lanes=config.lanes,
    shares=way == 'gathered'
    and alone
    and device.platform == 'cpu'
    and _shares(model_config, config),
    mesh=mesh if mesh is not None and mesh.size > 1 else None,
  )


def _way(
  model_config: model.ModelConfig,
  config: api.EngineConfig,
  device: jax.Device,  # pyright: ignore[reportInvalidTypeForm]  # jax assigns the class.
) -> Literal['blocks', 'kernel', 'gathered']:
  """Returns the way in which decoding reads pages on a device."""
  why_not = kernels.lacks(
    blocks.platform_of(device),
    model_config.dtype,
    config.kv_dtype,
    model_config.head_dim,
  )
  way = config.attention
  if way == 'kernel' and why_not:
    raise ValueError(f"attention='kernel': {why_not}; take 'blocks'")
  if way == 'auto':
    slots = config.table_pages * config.page_tokens
    if device.platform != 'cpu':
      way = 'blocks' if why_not else 'kernel'
    else:
      way = 'gathered' if slots <= _MAX_GATHERED else 'blocks'
  return way


def _shares(model_config: model.ModelConfig, config: api.EngineConfig) -> bool:
  slots = config.table_pages * config.page_tokens
  assert config.lanes is not None
  return slots > pages_lib.MAX_DENSE and gathered.shares_bits(
    model_config.dtype,
    config.slots // config.lanes,
    model_config.n_kv_heads,
    model_config.n_heads // model_config.n_kv_heads,
    model_config.head_dim,
    slots,
  )


def _shardings(arrays: Any) -> Any:
  return jax.tree.map(lambda x: x.sharding, arrays)


def _struct(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None))
