"""An engine that samples for many coroutines from one thread of its own.

Requests join a fixed number of slots as they come and leave as they end. Prompts
are read in pieces between chunks of decoding, and what two of them share is read
once. The event loop never waits on the device: it only appends to a queue, and
the device thread hands results back to the loop that asked. What a request
samples is a function of the request and the parameters; when it came, who came
with it and what was read before never show.
"""

import asyncio
import atexit
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from agentflow_jax.core import device_time, launches, model
from agentflow_jax.inference import api, device as device_lib, device_thread
from agentflow_jax.inference import pages as pages_lib, programs
from agentflow_jax.inference import shared as shared_lib


class Engine:
  """Samples responses from the current parameters.

  Make it in the thread that owns the program, `warmup` it, share it between any
  number of event loops, and `close` it (it is also a context manager).

  Attributes:
    name: name of the thread and of the engine in logs.
    config: shapes and timing, with every value that was left open chosen.
    device: pages, lanes and programs, which the device thread alone uses; tests set
      its hooks.
  """

  def __init__(
    self,
    model_config: model.ModelConfig,
    config: api.EngineConfig,
    params: Any,
    version: int = 0,
    *,
    name: str = 'planner',
    sharding: Any = None,
    copy: bool = True,
    clock: Callable[[], float] = time.monotonic,
    meter: device_time.Meter = device_time.METER,
  ):
    """Takes the parameters and starts the device thread.

    Args:
      model_config: config of the model that the parameters are of.
      config: shapes and timing.
      params: the model's parameters, or the result of `as_read`. The engine
        keeps its own copy on the device, so the caller may donate these; but see
        `copy`.
      version: name of the parameters in every result.
      name: name of the thread and of the engine in logs.
      sharding: place of the copy: one `jax.sharding.Sharding` for all, or a pytree of
        them; by default this process's first device.
      copy: False to use the caller's own arrays where they lie as `sharding`
        says; the caller then never donates them.
      clock: monotonic time [s], which tests set.
      meter: meter of the devices' time; the process's own but in tests.

    Raises:
      ValueError: the shapes do not fit the model.
    """
    if config.max_prompt_tokens > model_config.max_positions:
      raise ValueError(
        f"max_prompt_tokens {config.max_prompt_tokens} exceeds the model's"
        f' context of {model_config.max_positions}'
      )
    if config.max_kept > model_config.vocab_size:
      raise ValueError(
        f"max_kept {config.max_kept} exceeds the model's vocabulary of"
        f' {model_config.vocab_size}'
      )
    self.name = name
    self._model_config = model_config
    self._meter = meter
    self._shapes = _shapes(params)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    self.device = device_lib.Device(model_config, config, params, sharding, copy, name)
    self.config = self.device.config
    self._shared = shared_lib.Shared(
      name,
      self.config,
      self.device.take_params(),
      version,
      new_in_pages=self.device.keeps_new_in_pages,
      clock=clock,
      meter=meter,
    )
    self._thread = device_thread.DeviceThread(self._shared, self.device, clock)
    # A thread inside the runtime when the interpreter tears down is a crash.
    atexit.register(self.close)

  def __enter__(self) -> 'Engine':
    return self

  def __exit__(self, *unused_exc_info):
    self.close()

  async def generate(self, request: api.Request) -> api.Result:
    """Samples one response.

    Cancelling the caller drops the request: its slot and its pages are free
    as soon as the device is done with what it was given.

    Args:
      request: request to sample.

    Returns:
      Its ids and their log probabilities.

    Raises:
      PromptTooLong: prompt and response do not fit.
      ValueError: the request is malformed.
      EngineClosed: the engine is closed, or was before the response was done.
      EngineError: the device or the request's stop_fn failed; the cause is
        chained.
    """
    api.check_request(
      request,
      self.config,
      vocab_size=self._model_config.vocab_size,
      max_positions=self._model_config.max_positions,
    )
    pending = self._shared.submit(request)
    try:
      return await pending.future
    except asyncio.CancelledError:
      self._shared.abandon(pending)
      raise
    finally:
      if request.on_end is not None:
        # A settled request has its time: an event loop that resumes late does
        # not add to it.
        request.on_end(pending.timing or self._shared.timing(pending))

  def calling(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context for a caller that makes several requests.

    A chunk of few rows waits, within bounds, for callers between two requests
    (EngineConfig.company_chunks). What is sampled does not depend on that.
    """
    return self._shared.calling()

  def update_params(self, params: Any, version: int, *, copy: bool = True):
    """Makes requests that get a slot from now on sample from `params`.

    Those that have one end with the parameters they started with; others wait
    for that. What was read is forgotten. The parameters are copied on the
    device, so the caller may donate them afterwards; but see `copy`.

    Args:
      params: parameters with the shapes and dtypes of construction.
      version: name of these parameters in every result.
      copy: the same argument of construction.

    Raises:
      ValueError: the tree, a shape or a dtype differs from construction.
    """
    new, old = _shapes(params), self._shapes
    if new != old:
      raise ValueError(
        "params differ from the engine's: "
        + '; '.join(
          f'{path}: {new.get(path)}, not {old.get(path)}'
          for path in sorted(new.keys() | old.keys())
          if new.get(path) != old.get(path)
        )
      )
    with self._meter.used():
      params = self.device.place(params, copy)
    self._shared.replace(params, version)

  def warmup(self, truncates: Sequence[bool] = (False, True), with_top: bool = False):
    """Compiles every program, so that no request waits for the compiler.

    Args:
      truncates: programs to compile: False for requests that set none of top_k, top_p
        and min_p, True for the others. A program left out is compiled when the first
        request needs it.
      with_top: whether to compile the program of requests that ask for the most likely
        tokens, too.
    """
    self.device.compile([(t, False) for t in truncates] + [(True, True)] * with_top)

  @property
  def compilations(self) -> int:
    """Programs that this engine compiled; it must not grow after `warmup`.

    An engine of the same shapes, made earlier, leaves it nothing to compile.
    """
    return self.device.compilations

  @property
  def model_config(self) -> model.ModelConfig:
    """Config of the network that is sampled from."""
    return self._model_config

  @property
  def lanes(self) -> int:
    """Groups of slots that are decoded side by side, see EngineConfig."""
    return self.device.reading.lanes

  @property
  def is_closed(self) -> bool:
    """Whether it takes no more requests: it was closed, or could not go on."""
    return self._shared.is_closing

  @property
  def params(self) -> Any:
    """What the next request will sample from; not to be donated.

    With layers as core.model.unrolled has them, but where they are scanned.
    """
    return self._shared.newest[0]

  @property
  def params_version(self) -> int:
    """Of the parameters that the next request will sample from."""
    return self._shared.newest[1]

  def stats(self) -> api.EngineStats:
    """Totals since construction, at one moment."""
    return self._shared.stats(self.compilations)

  def close(self):
    """Fails what is unfinished with EngineClosed and ends the thread.

    What is on the device stops at its next chunk. May be called twice.
    """
    self._shared.close()
    self._thread.join()
    self.device.close()
    atexit.unregister(self.close)


def as_read(
  model_config: model.ModelConfig, config: api.EngineConfig, params: Any
) -> Any:
  """Returns parameters in the layout that engines of these shapes read.

  An engine that reads layers apart copies them from the stacked arrays, which
  must stay if another program reads them (the update of a run that trains).
  Where no other program does, this function takes the layers apart once for any
  number of engines, and deletes the stacked arrays.

  Args:
    model_config: the network.
    config: shapes, and whether layers are read apart.
    params: parameters; from now on the caller must use only the result.

  Raises:
    ValueError: see programs.reading_of.
  """
  where = pages_lib.pool_sharding(params)
  config = programs.settled(model_config, config, where)
  if not programs.reading_of(model_config, config, where).unrolled:
    return params
  with launches.in_turn(params):
    return model.take_apart(model_config, params)


def _shapes(params: Any) -> dict[str, str]:
  """Returns path -> dtype and shape of every leaf."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return {jax.tree_util.keystr(path): f'{x.dtype}{list(x.shape)}' for path, x in leaves}
