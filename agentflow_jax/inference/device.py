"""What an engine keeps on its devices, and the calls that change it.

Tests are in tests/inference/engine_*_test.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any, Literal

import jax
import jax.numpy as jnp

from agentflow_jax.core import launches, model
from agentflow_jax.inference import api, batching, decoding, gathered
from agentflow_jax.inference import pages as pages_lib, programs

# A call: programs are compiled, pieces of prompts read, a chunk of tokens sampled, or
# pages made anew.
Call = Literal['compile', 'read', 'sample', 'renew']
# A function that is told of a call, and of the number of its lane.
Hook = Callable[[Call, int], None]


def no_hook(unused_call: Call, unused_lane: int) -> None:
  """Does nothing."""


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Rows of one lane that one program samples.

  Attributes:
    rows: row of each slot.
    program: program that samples them.
    arrays: host arrays that the program takes.
  """

  rows: Mapping[int, batching.Row]
  program: Callable
  arrays: Sequence[Any]


class Device:
  """The pages of an engine, its lanes, and the programs over both.

  Keys and values lie in one pool of pages. Slots form lanes, slot s in lane
  s % lanes, and lanes read and sample side by side, a thread each. Two things a lane
  may have for itself: a store, into which the keys and values of its rows are
  gathered once, so that sampling does not look them up in the pool (reading.way is
  'gathered'); and, where there are several lanes, pages to read pieces of prompts
  into (a desk), which are then copied into the pool, because two programs cannot
  write to one pool at a time.

  One thread makes all calls. A call that fails may have consumed what it was given,
  so after a failure comes `renew`.

  Attributes:
    config: shapes and timing, with every value that was left open chosen.
    reading: access of decoding to the pages.
    before_call: hook that is called before each call, in the thread of the lane that
      makes it; lane 0 for what is done once. What it raises fails the call. For tests.
    after_call: hook that is called after each call that succeeded. For tests.
  """

  def __init__(
    self,
    model_config: model.ModelConfig,
    config: api.EngineConfig,
    params: Any,
    sharding: Any,
    copy: bool,
    name: str,
  ):
    """Makes the pages.

    Args:
      model_config: config of the model that the parameters are of.
      config: shapes and timing.
      params: parameters, see `place`.
      sharding: place of the parameters, see engine.Engine.
      copy: False to use arrays that lie on the devices already as they are.
      name: name of the engine, which the threads carry.
    """
    self.before_call: Hook = no_hook
    self.after_call: Hook = no_hook
    self._sharding = sharding
    where, *_ = jax.tree.leaves(sharding)
    self._devices = len(where.device_set)
    placed = self._placed(params, copy)
    pool_sharding = pages_lib.pool_sharding(placed)
    self.config = programs.settled(model_config, config, pool_sharding)
    self._make_pool = jax.jit(
      functools.partial(
        pages_lib.make_pool,
        model_config,
        self.config.pages,
        self.config.page_tokens,
        self.config.kv_dtype,
      ),
      out_shardings=pool_sharding,
    )
    self._pool = self._new_pool()
    self.reading = programs.reading_of(
      model_config, self.config, self._pool.keys.sharding
    )
    self._unroll = None
    if self.reading.unrolled and 'layers' in placed:
      self._unroll = model.make_unrolled_fn(model_config, placed)
    self._first_params = self._unrolled(placed)
    self._programs = programs.Programs(
      model_config, self.config, self._first_params, self._pool, self.reading
    )
    self._stores: list[gathered.Store] | None = None
    self._desks: list[pages_lib.Pool] = []
    self._make_room()
    self._threads = futures.ThreadPoolExecutor(  # Beside the caller's own.
      self.reading.lanes, thread_name_prefix=f'engine-{name}-lane'
    )

  def place(self, params: Any, copy: bool) -> Any:
    """Returns parameters on the devices, with layers as the programs read them.

    Args:
      params: parameters with the shapes and dtypes of construction.
      copy: False to use arrays that lie there already as they are.
    """
    return self._unrolled(self._placed(params, copy))

  def take_params(self) -> Any:
    """Returns the parameters of construction, placed; once, so that they can go."""
    params, self._first_params = self._first_params, None
    return params

  @property
  def keeps_new_in_pages(self) -> bool:
    """Whether the pages take the tokens that are sampled, too."""
    return self._stores is None

  @property
  def compilations(self) -> int:
    """Programs that were compiled because this object needed them first."""
    return self._programs.compilations

  def compile(self, kinds: Iterable[tuple[bool, bool]]) -> None:
    """Compiles what reads prompts and what samples, where it is not compiled yet.

    Args:
      kinds: programs that sample, see api.Request.program.
    """
    self.before_call('compile', 0)
    self._programs.prefill()
    if self.reading.lanes > 1:
      self._programs.file_pages()
    for kind in kinds:
      self._programs.decode(*kind)
    self.after_call('compile', 0)

  def read(
    self, params: Any, lanes: Sequence[Sequence[batching.Piece]]
  ) -> list[jax.Array]:
    """Reads pieces of prompts into pages.

    Args:
      params: parameters, as `place` returns them.
      lanes: pieces that each lane reads.

    Returns:
      For each lane that read something, whether all was finite. With one lane it is
      still to be computed.
    """
    if self._desks:
      return self._read_apart(params, lanes)
    (pieces,) = lanes
    self.before_call('read', 0)
    segments = batching.pack_pieces(pieces, self.config)
    prefill = self._programs.prefill()
    with launches.over(self._devices):
      self._pool, is_finite = prefill(params, self._pool, segments)
    self.after_call('read', 0)
    return [is_finite]

  def chunk(self, kind: tuple[bool, bool], rows: Mapping[int, batching.Row]) -> Chunk:
    """Returns rows of one lane as a program takes them.

    Args:
      kind: program of the rows, see api.Request.program.
      rows: row of each slot.
    """
    placed = [(slot // self.reading.lanes, row) for slot, row in rows.items()]
    arrays: list[Any] = [batching.pack_rows(placed, self.config, self.reading)]
    if self._stores is not None:
      fresh = [(place, row) for place, row in placed if not row.is_gathered]
      arrays.append(batching.pack_fresh(fresh, self.config, self.reading))
    return Chunk(rows, self._programs.decode(*kind), arrays)

  def sample(
    self, params: Any, lanes: Mapping[int, Sequence[Chunk]]
  ) -> list[tuple[Chunk, decoding.Sampled]]:
    """Samples up to `decode_chunk` tokens for rows of any lanes.

    Args:
      params: parameters, as `place` returns them.
      lanes: chunks of each lane, which it samples one after the other.

    Returns:
      What each chunk's rows got, on the host.
    """

    def one(lane):
      self.before_call('sample', lane)
      done = [self._sample(params, lane, chunk) for chunk in lanes[lane]]
      self.after_call('sample', lane)
      return done

    return sum(self._side_by_side(one, list(lanes)), [])

  def renew(self) -> None:
    """Makes all pages anew, empty."""
    self.before_call('renew', 0)
    self._pool = None  # First, so that there is room.
    self._pool = self._new_pool()
    self._make_room()
    self.after_call('renew', 0)

  def close(self) -> None:
    """Ends the threads of the lanes."""
    self._threads.shutdown()

  def _placed(self, params, copy):
    with launches.over(self._devices):
      placed = jax.device_put(params, self._sharding)
      if copy:  # device_put alone may alias a device's part of an array.
        placed = jax.tree.map(jnp.copy, placed)
    return jax.block_until_ready(placed)

  def _unrolled(self, params):
    if self._unroll is None:
      return params
    with launches.over(self._devices):
      return jax.block_until_ready(self._unroll(params))

  def _new_pool(self) -> pages_lib.Pool:
    with launches.over(self._devices):
      return self._make_pool()

  def _make_room(self):
    self._stores, self._desks = None, []  # First, so that there is room.
    lanes = range(self.reading.lanes)
    if self.reading.way == 'gathered':
      self._stores = [self._programs.make_store() for _ in lanes]
    if len(lanes) > 1:
      self._desks = [self._programs.make_desk() for _ in lanes]

  def _read_apart(self, params, lanes) -> list[jax.Array]:
    """Reads in lanes side by side, waits for them, and fills the pool."""
    prefill, file_pages = self._programs.prefill(), self._programs.file_pages()
    loads, segments, copies = zip(
      *(batching.pack_apart(pieces, self.config, len(lanes)) for pieces in lanes)
    )

    def read(lane):
      self.before_call('read', lane)
      with launches.over(self._devices):
        self._desks[lane], is_finite = prefill(
          params, self._desks[lane], self._pool, loads[lane], segments[lane]
        )
      jax.block_until_ready(is_finite)
      self.after_call('read', lane)
      return is_finite

    used = [lane for lane, pieces in enumerate(lanes) if pieces]
    is_finite = self._side_by_side(read, used)
    with launches.over(self._devices):
      self._pool = file_pages(self._pool, tuple(self._desks), copies)
    return is_finite

  def _sample(self, params, lane, chunk) -> tuple[Chunk, decoding.Sampled]:
    with launches.over(self._devices):
      if self._stores is None:
        self._pool, sampled = chunk.program(params, self._pool, *chunk.arrays)
      else:
        rows, fresh = chunk.arrays
        self._stores[lane], sampled = chunk.program(
          params, self._stores[lane], rows, self._pool, fresh
        )
    return chunk, jax.device_get(sampled)

  def _side_by_side(
    self, function: Callable[[int], Any], lanes: Sequence[int]
  ) -> list[Any]:
    """Calls a function for each lane, a thread each; this one makes the first call."""
    own, *others = lanes
    waits = [self._threads.submit(function, lane) for lane in others]
    try:
      out = [function(own)]
    finally:
      futures.wait(waits)  # Their lanes are theirs until they end.
    return out + [wait.result() for wait in waits]
