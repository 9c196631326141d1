"""A small model, an engine for it, requests of every kind, and their oracle."""

import asyncio
import dataclasses
import random
import threading

import jax
import jax.numpy as jnp
import numpy as np

from agentflow_jax import records
from agentflow_jax.core import model
from agentflow_jax.inference import api

V = 56
MODEL = model.ModelConfig(
  vocab_size=V,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=48,
  max_positions=40,
  # Tied embeddings at birth repeat the last token for ever.
  tie_embeddings=False,
)
CONFIG = api.EngineConfig(
  slots=6,
  max_prompt_tokens=32,
  max_new_tokens=12,
  page_tokens=4,
  prefill_pieces=3,
  piece_tokens=8,
  decode_chunk=5,
  max_stop_ids=3,
)


@jax.jit
def init(seed):
  params = model.init_params(MODEL, jax.random.key(seed))
  # Sharper than at birth, so that greedy choices are not near ties.
  return dict(params, head=2.0 * params['head'])


def request(n=5, key=0, seed=None, stop_ids=(), stop_fn=None, **sampling):
  rng = random.Random(n if seed is None else seed)
  sampling.setdefault('max_new_tokens', 8)
  return api.Request(
    prompt_ids=tuple(rng.randrange(V) for _ in range(n)),
    key_words=(key, 77),
    sampling=records.SamplingSpec(**sampling),
    stop_ids=stop_ids,
    stop_fn=stop_fn,
  )


def mixed(count, seed=0):
  """Requests of every kind: lengths, specs, stops, a few equal prompts."""
  rng = random.Random(seed)
  specs = (
    dict(),
    dict(temperature=0.0),
    dict(temperature=0.6),
    dict(top_k=5),
    dict(top_p=0.8, temperature=1.4),
    dict(min_p=0.1),
  )
  return [
    request(
      rng.choice((1, 3, 7, 8, 9, 20, 27)),
      key=rng.randrange(2**32),
      seed=rng.randrange(4),
      stop_ids=rng.choice(((), (3,), (4, 5, 6))),
      stop_fn=rng.choice((None, stop_at_multiple_of_nine)),
      max_new_tokens=rng.choice((1, 2, 6, 12)),
      **rng.choice(specs),
    )
    for _ in range(count)
  ]


def is_cheap(request):
  """Whether it needs the plain programs only (compiling is slow)."""
  return not request.sampling.truncates


def stop_at_multiple_of_nine(ids):
  return next((i + 1 for i, x in enumerate(ids) if x % 9 == 0), None)


def generate(engine, requests):
  async def run():
    # A bug may leave a caller waiting for ever: let the test fail instead.
    return await asyncio.wait_for(
      asyncio.gather(*(engine.generate(r) for r in requests)), 300
    )

  return asyncio.run(run())


def hold(engine):
  """Keeps the engine busy with one request until the event is set."""
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)
    return 1

  threading.Thread(target=generate, args=(engine, [request(3, stop_fn=wait)])).start()
  assert busy.wait(60)
  return release


async def until(condition):
  for _ in range(6000):
    if condition():
      return
    await asyncio.sleep(0.01)
  raise AssertionError('the condition never came true')


def together(engine, requests):
  """Samples requests that all wait before the first batch of them starts."""
  queued = engine.stats().queued + len(requests)
  release = hold(engine)

  async def run():
    tasks = [asyncio.create_task(engine.generate(r)) for r in requests]
    await until(lambda: engine.stats().queued == queued)
    release.set()
    return await asyncio.gather(*tasks)

  return asyncio.run(run())


def bits(result):
  return (
    result.response_ids,
    np.array(result.logprobs, np.float32).tobytes(),
    result.finish_reason,
  )


@jax.jit
def padded_logits(params, ids, length):
  positions = jnp.arange(ids.shape[0])
  ends = jnp.where(positions < length, length, 0)
  return model.forward(MODEL, params, ids[None], positions[None], ends[None])[0]


def logits(params, ids):
  """float64 [len(ids), V] by one plain forward pass."""
  padded = np.zeros((MODEL.max_positions,), np.int32)
  padded[: len(ids)] = ids
  found = padded_logits(params, padded, len(ids))
  return np.asarray(found, np.float64)[: len(ids)]


def oracle(params, request, response_ids, max_kept=V):
  """Scores a response in float64, with the kept sets by plain loops.

  Returns:
    Log probabilities, and the sets, the most likely first.
  """
  spec, prompt = request.sampling, request.prompt_ids
  scores = logits(params, prompt + response_ids)[len(prompt) - 1 : -1]
  out, sets = [], []
  for row, token in zip(scores, response_ids, strict=True):
    row = row / (spec.temperature or 1.0)
    probs = np.exp(row - row.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind='stable')
    mass = np.cumsum(probs[order])
    keep = [
      token
      for rank, token in enumerate(order)
      if (not spec.top_k or rank < spec.top_k)
      and (rank == 0 or spec.top_p == 1 or mass[rank - 1] < spec.top_p)
      and probs[token] >= spec.min_p * probs.max()
    ]
    if spec.truncates:
      keep = keep[:max_kept]
    out.append(np.log(probs[token] / probs[keep].sum()))
    sets.append(keep)
    assert token in keep
  return np.array(out), sets


def check_logprobs(config, params, request, bits, atol=1e-5):
  """Compares with a plain forward pass of that network, at temperature 1."""
  ids = np.array([request.prompt_ids + bits[0]], np.int32)
  at = np.arange(ids.shape[1])[None]
  found = jax.jit(model.forward, static_argnums=0)(
    config, params, ids, at, np.full_like(ids, ids.shape[1])
  )
  scores = jax.nn.log_softmax(found[0, len(request.prompt_ids) - 1 : -1])
  expected = np.take_along_axis(np.asarray(scores), np.array(bits[0])[:, None], axis=1)[
    :, 0
  ]
  got = np.frombuffer(bits[1], np.float32)
  np.testing.assert_allclose(got, expected, atol=atol)


def prefixed(count, seed):
  """Requests whose prompts begin alike in many ways."""
  rng = random.Random(seed)
  stems = [[rng.randrange(V) for _ in range(28)] for _ in range(3)]
  out = []
  for request in mixed(count, seed):
    stem = rng.choice(stems)[: rng.randrange(24)]
    ids = tuple(stem) + request.prompt_ids[: 27 - len(stem)]
    out.append(dataclasses.replace(request, prompt_ids=ids))
  return out


def timed(request):
  """Returns a request, and the list that gets its times."""
  timings = []
  return dataclasses.replace(request, on_end=timings.append), timings
