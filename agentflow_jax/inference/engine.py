"""An engine that samples for many coroutines from one thread of its own.

Requests that wait are coalesced into batches of one prompt bucket and one
program (truncating or not). The event loop never waits on the device: it only
appends to a queue, and the device thread hands results back to the loop that
asked. What a request samples is a function of the request and the parameters;
when it came and who came with it never show.
"""

import asyncio
import atexit
import collections
from collections.abc import Sequence
import dataclasses
import threading
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from agentflow_jax.core import model
from agentflow_jax.inference import api
from agentflow_jax.inference import batching


@dataclasses.dataclass(eq=False)
class _Pending:
  """A request on its way through the engine."""

  request: api.Request
  loop: asyncio.AbstractEventLoop
  future: asyncio.Future
  submitted: float  # time.monotonic() [s]
  abandoned: bool = False  # Its caller was cancelled.
  settled: bool = False  # Result or error is on its way to the loop.


class Engine:
  """Samples responses from the current parameters.

  Make it in the thread that owns the program, `warmup` it, share it between any
  number of event loops, and `close` it (it is also a context manager).
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
  ):
    """Takes the parameters and starts the device thread.

    Args:
      model_config: of the model that the parameters are of.
      config: shapes and timing.
      params: the model's parameters. The engine keeps its own copy on the
        device, so the caller may donate these; but see `copy`.
      version: names the parameters in every result.
      name: of the thread and in logs.
      sharding: where the copy lives: one `jax.sharding.Sharding` for all, or a
        pytree of them; by default this process's first device.
      copy: False to use the caller's own arrays where they lie as `sharding`
        says; the caller then never donates them.

    Raises:
      ValueError: the shapes do not fit the model.
    """
    if config.prompt_buckets[-1] > model_config.max_positions:
      raise ValueError(
          f'the prompt bucket of {config.prompt_buckets[-1]} exceeds the'
          f' model\'s context of {model_config.max_positions}'
      )
    self.name = name
    self.config = config
    self._model_config = model_config
    self._sharding = sharding or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    self._params = self._place(params, copy)
    self._version = version
    self._programs = batching.Programs(model_config, config, self._params)
    self._totals = collections.Counter()
    # Guards everything below, the parameters and the totals.
    self._wake = threading.Condition()
    self._queues: dict[tuple[int, bool], collections.deque[_Pending]] = {}
    self._running: list[_Pending] = []
    self._closing = False
    self._thread = threading.Thread(
        target=self._serve, name=f'engine-{name}', daemon=True
    )
    self._thread.start()
    # A thread inside the runtime when the interpreter tears down is a crash.
    atexit.register(self.close)

  def __enter__(self) -> 'Engine':
    return self

  def __exit__(self, *unused_exc_info):
    self.close()

  async def generate(self, request: api.Request) -> api.Result:
    """Samples one response.

    Cancelling the caller drops the request: before it started it costs
    nothing, afterwards its row idles to the end of its batch.

    Args:
      request: what to sample.

    Returns:
      Its ids and their log probabilities.

    Raises:
      PromptTooLong: prompt and response do not fit.
      ValueError: the request is malformed.
      EngineClosed: the engine is closed, or was before the response was done.
      EngineError: the device or the request's stop_fn failed; the cause is
        chained.
    """
    bucket = api.check_request(
        request,
        self.config,
        vocab_size=self._model_config.vocab_size,
        max_positions=self._model_config.max_positions,
    )
    loop = asyncio.get_running_loop()
    pending = _Pending(request, loop, loop.create_future(), time.monotonic())
    with self._wake:
      if self._closing:
        raise self._closed()
      kind = (bucket, request.sampling.truncates)
      self._queues.setdefault(kind, collections.deque()).append(pending)
      self._totals['requests'] += 1
      self._wake.notify()
    try:
      return await pending.future
    except asyncio.CancelledError:
      self._abandon(kind, pending)
      raise

  def update_params(self, params: Any, version: int):
    """Makes batches that start from now on sample from `params`.

    A running batch ends with the parameters it started with. The parameters
    are copied on the device, so the caller may donate them afterwards.

    Args:
      params: shapes and dtypes as at construction.
      version: names them in every result.

    Raises:
      ValueError: the tree, a shape or a dtype differs from construction.
    """
    new, old = _shapes(params), _shapes(self._params)
    if new != old:
      raise ValueError(
          'params differ from the engine\'s: '
          + '; '.join(
              f'{path}: {new.get(path)}, not {old.get(path)}'
              for path in sorted(new.keys() | old.keys())
              if new.get(path) != old.get(path)
          )
      )
    params = self._place(params)
    with self._wake:
      self._params, self._version = params, version

  def warmup(self, truncates: Sequence[bool] = (False, True)):
    """Compiles every shape, so that no request waits for the compiler.

    Args:
      truncates: which programs: False for requests that set none of top_k,
        top_p and min_p, True for the others. A program left out is compiled
        when the first request needs it.
    """
    for bucket in self.config.prompt_buckets:
      for value in truncates:
        self._programs.get(bucket, value)

  @property
  def compilations(self) -> int:
    """Programs that this engine compiled; it must not grow after `warmup`.

    An engine of the same shapes, made earlier, leaves it nothing to compile.
    """
    return self._programs.compilations

  @property
  def params(self) -> Any:
    """What the next batch will sample from; not to be donated."""
    return self._params

  @property
  def params_version(self) -> int:
    """Of the parameters that the next batch will sample from."""
    return self._version

  def stats(self) -> api.EngineStats:
    """Totals since construction, at one moment."""
    with self._wake:
      return api.EngineStats(
          queued=sum(map(len, self._queues.values())),
          running=sum(
              not (p.settled or p.abandoned) for p in self._running
          ),
          compilations=self.compilations,
          **self._totals,
      )

  def close(self):
    """Fails what is unfinished with EngineClosed and ends the thread.

    A batch on the device stops at its next chunk. May be called twice.
    """
    with self._wake:
      self._closing = True
      self._wake.notify()
    self._thread.join()
    atexit.unregister(self.close)

  def _place(self, params, copy=True):
    return jax.block_until_ready(
        jax.device_put(params, self._sharding, may_alias=not copy)
    )

  def _closed(self):
    return api.EngineClosed(f'engine {self.name} is closed')

  def _abandon(self, kind, pending):
    """Forgets a request whose caller was cancelled."""
    with self._wake:
      if pending.settled or pending.abandoned:
        return
      pending.abandoned = True
      self._totals['cancelled'] += 1
      queue = self._queues.get(kind, ())
      if pending in queue:
        queue.remove(pending)

  # Everything below runs in the device thread.

  def _serve(self):
    """Runs batches until the engine closes."""
    while True:
      with self._wake:
        kind = self._wait()
        if kind is None:
          left = [p for queue in self._queues.values() for p in queue]
          self._queues.clear()
          break
        queue = self._queues[kind]
        n = min(len(queue), self.config.slots)
        batch = self._running = [queue.popleft() for _ in range(n)]
        params, version = self._params, self._version
        self._totals['batches'] += 1
        self._totals['batch_rows'] += n
        self._totals['prompt_tokens'] += sum(
            len(p.request.prompt_ids) for p in batch
        )
      start = time.monotonic()
      try:
        self._run(batch, kind, params, version, start)
      except Exception as e:  # Boundary: its requests get an EngineError.
        logging.exception('Engine %s lost a batch of %d.', self.name, n)
        self._settle([(p, _failure(self.name, e)) for p in batch])
      with self._wake:
        self._running = []
        self._totals['model_seconds'] += time.monotonic() - start
    self._settle([(p, self._closed()) for p in left])

  def _wait(self) -> tuple[int, bool] | None:
    """Returns the kind of the next batch; the lock is held.

    The request that has waited longest chooses it, and waits a little for
    company unless a batch is full.
    """
    while not self._closing:
      kinds = [kind for kind, queue in self._queues.items() if queue]
      if not kinds:
        self._wake.wait()
        continue
      kind = min(kinds, key=lambda k: self._queues[k][0].submitted)
      queue = self._queues[kind]
      left = (
          queue[0].submitted + self.config.coalesce_seconds - time.monotonic()
      )
      if len(queue) >= self.config.slots or left <= 0:
        return kind
      self._wake.wait(left)
    return None

  def _run(self, batch, kind, params, version, start):
    """Samples a batch, settling each request as soon as it is done."""
    prefill, decode = self._programs.get(*kind)
    prompts, rows = batching.pack(
        [p.request for p in batch], kind[0], self.config
    )
    with self._wake:
      self._totals['prompts'] += int(prompts.used)
    cache, progress = prefill(params, prompts, rows)
    stopped = np.ones((self.config.slots,), np.bool_)
    stopped[: len(batch)] = False
    sampled = 0
    while True:
      # The only wait for the device: after the prompt, and once a chunk.
      host = jax.device_get(progress)
      before, sampled = sampled, int(host.lengths.sum())
      with self._wake:
        self._totals['sampled_tokens'] += sampled - before
      if self._closing:
        self._settle([(p, self._closed()) for p in batch])
        return
      outcomes = []
      for row, pending in enumerate(batch):
        if stopped[row]:
          continue
        if pending.abandoned:
          stopped[row] = True
          continue
        outcome = self._look(pending, row, host, version, start)
        if outcome is not None:
          stopped[row] = True
          outcomes.append((pending, outcome))
      self._settle(outcomes)
      if stopped.all():
        return
      cache, progress = decode(params, cache, rows, progress, stopped)

  def _look(
      self, pending, row, host, version, start
  ) -> api.Result | api.EngineError | None:
    """Returns how a row ended, or None while it goes on."""
    length = int(host.lengths[row])
    ids = host.tokens[row, :length].tolist()
    logprobs = host.logprobs[row, :length]
    try:
      end = batching.finish(pending.request, ids, logprobs, host.done[row])
    except Exception as e:  # Boundary: stop_fn is the caller's own function.
      return _failure(self.name, e)
    if end is None:
      return None
    keep, reason = end
    return api.Result(
        response_ids=tuple(ids[:keep]),
        logprobs=tuple(logprobs[:keep].tolist()),
        finish_reason=reason,
        params_version=version,
        queue_seconds=start - pending.submitted,
        model_seconds=time.monotonic() - start,
    )

  def _settle(self, outcomes):
    """Hands results and errors to the loops that wait for them."""
    by_loop = collections.defaultdict(list)
    with self._wake:
      for pending, outcome in outcomes:
        if pending.settled or pending.abandoned:
          continue
        pending.settled = True
        by_loop[pending.loop].append((pending.future, outcome))
        if isinstance(outcome, api.Result):
          self._totals['completed'] += 1
          self._totals['response_tokens'] += len(outcome.response_ids)
        else:
          self._totals['failed'] += 1
    for loop, settled in by_loop.items():
      try:
        loop.call_soon_threadsafe(_deliver, settled)
      except RuntimeError as e:  # The loop was closed: nobody waits any more.
        logging.warning(
            'Engine %s: %d results for a loop that is gone: %s',
            self.name,
            len(settled),
            e,
        )


def _shapes(params: Any) -> dict[str, str]:
  """Returns path -> dtype and shape of every leaf."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return {
      jax.tree_util.keystr(path): f'{x.dtype}{list(x.shape)}'
      for path, x in leaves
  }


def _failure(name: str, cause: Exception) -> api.EngineError:
  error = api.EngineError(f'engine {name}: {type(cause).__name__}: {cause}')
  error.__cause__ = cause
  return error


def _deliver(settled: list[tuple[asyncio.Future, Any]]):
  """Resolves futures; runs in their loop."""
  for future, outcome in settled:
    if future.done():  # Its caller was cancelled meanwhile.
      continue
    if isinstance(outcome, Exception):
      future.set_exception(outcome)
    else:
      future.set_result(outcome)
