"""Many random requests, cancellations and new parameters; nothing is lost.

For an hour: SOAK_SECONDS=3600 pytest tests/inference/soak_test.py -m slow
"""

import asyncio
import os
import random
import resource
import time

import jax
import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.core import model
from agentflow_jax.inference import api
from agentflow_jax.inference import engine as engine_lib
from agentflow_jax.inference import simple_engine

_MODEL = model.ModelConfig(
  vocab_size=56,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=48,
  max_positions=120,
  tie_embeddings=False,
)
# Less room than eight slots can ask for: requests wait, and pages are evicted.
_CONFIG = api.EngineConfig(
  slots=8,
  max_prompt_tokens=90,
  max_new_tokens=16,
  page_tokens=8,
  piece_tokens=16,
  kv_tokens=400,
  decode_chunk=4,
  lanes=2,
)


def _request(rng, stems):
  stem = rng.choice(stems)[: rng.randrange(80)]
  ids = stem + [rng.randrange(56) for _ in range(rng.randrange(1, 10))]
  return api.Request(
    prompt_ids=tuple(ids),
    key_words=(rng.randrange(2**32), 1),
    sampling=records.SamplingSpec(
      temperature=rng.choice((0.0, 0.7, 1.0)),
      top_k=rng.choice((0, 0, 5)),
      max_new_tokens=rng.randrange(1, 17),
    ),
    stop_ids=rng.choice(((), (3,))),
  )


class _Soak:
  """Clients of one engine, who now and then change their minds."""

  def __init__(self, engine, params, seconds):
    self.engine, self.params = engine, params
    self.end = time.monotonic() + seconds
    self.samples, self.done, self.cancelled = [], 0, 0

  async def client(self, seed):
    rng = random.Random(seed)
    stems = [[random.Random(i).randrange(56) for _ in range(80)] for i in range(5)]
    while time.monotonic() < self.end:
      request = _request(rng, stems)
      task = asyncio.create_task(self.engine.generate(request))
      if rng.random() < 0.2:
        await asyncio.sleep(rng.random() * 0.05)
        task.cancel()
      try:
        result = await task
      except asyncio.CancelledError:
        self.cancelled += 1
        continue
      self.done += 1
      if rng.random() < 0.01:
        self.samples.append((request, result))
      if rng.random() < 0.1:  # A tool.
        await asyncio.sleep(rng.expovariate(20))

  async def swap(self):
    version = 0
    while time.monotonic() < self.end:
      await asyncio.sleep(1)
      version += 1
      self.engine.update_params(self.params[version % 2], version)

  async def run(self):
    await asyncio.gather(self.swap(), *map(self.client, range(30)))


@pytest.mark.slow
def test_soak():
  seconds = float(os.environ.get('SOAK_SECONDS', '30'))
  init = jax.jit(lambda seed: model.init_params(_MODEL, jax.random.key(seed)))
  params = [init(0), init(1)]
  with engine_lib.Engine(_MODEL, _CONFIG, params[0]) as engine:
    engine.warmup()
    asyncio.run(_Soak(engine, params, 5).run())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    soak, compiled = _Soak(engine, params, seconds), []

    def listen(name, unused_seconds, **unused_kwargs):
      if 'backend_compile' in name:
        compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
      asyncio.run(soak.run())
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    engine.update_params(params[0], 0)  # Forgets what was read.
    asyncio.run(engine.generate(_request(random.Random(0), [[1] * 80])))
    engine.update_params(params[1], 1)
    now = engine.stats()
  print(f'{soak.done} done, {soak.cancelled} cancelled, {grown} KiB, {now}')
  assert soak.done > 20 * seconds and soak.cancelled > soak.done / 20
  assert now.evicted_pages > 100
  assert now.queued == now.running == now.failed == 0
  assert now.requests == now.completed + now.cancelled
  assert now.free_pages == now.pages
  assert not compiled
  # Prefill, decode truncating or not, and what lanes keep, read on and file.
  assert now.compilations == 6
  # Samples and counters of this test are a part of it.
  assert grown < 20 * 1024 + seconds * 4
  assert len(soak.samples) > soak.done / 200
  for version in range(2):
    simple = simple_engine.SimpleEngine(
      _MODEL, params[version], slots=10, max_prompt_tokens=96, max_new_tokens=16
    )
    mine = [s for s in soak.samples if s[1].params_version % 2 == version]
    for start in range(0, len(mine), 10):
      part = mine[start : start + 10]
      for (_, result), (ids, logprobs) in zip(
        part, simple.generate([request for request, _ in part])
      ):
        assert result.response_ids == ids
        np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-5)
