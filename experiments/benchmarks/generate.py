"""What rollouts cost: the engine, and a simple one that batches in lockstep.

  python experiments/benchmarks/generate.py --out=generate.json

Made up rollouts by default: --requests of them, in groups of --group_size with a
query in common, of --turns turns. A prompt is --shared_prefix tokens that all
have in common (tool cards), its group's query, and --memory_len tokens a turn of
its own; between two turns a tool takes --tool_latency. Or --trace=FILE, JSONL of
a turn a line as benchmarks/update.py takes it: a response is as long as there.
Parameters are random, unless --weights names a model's directory or GGUF file.

Both engines do the same work in one run. The simple one takes all rollouts of a
turn at once, when the slowest tool is done; it shares equal prompts of a batch
and nothing else.

Writes JSON: seconds, rollouts a minute, tokens prefilled against unique ones,
rates of prefill and decode, as shares of the fastest product and of the memory
bandwidth (of reading weights, in each lane; decode, keys and values, too) that this
process measured before and after each engine, and which of the two is nearer; how
many times the simple engine's rollouts a minute that makes, as
it is, and were its prefill as fast as 60% of the fastest product. --score=N adds
how far the log probabilities that the paged engine recorded for N responses are
from those of a plain forward pass [nats], such as with --kv_dtype=int8.

--servers=NAME=URL,... (addresses that end in /v1) compares the paged engine with
OpenAI-compatible servers of the same model such as vLLM, and with the simple engine
unless --engine=paged: --repeats times each, in turn, with new rollouts each time, so
that no cache is found from the time before. --engine=paged leaves the simple engine
out. Servers must take token ids as prompts and the field ignore_eos. 'times' is the
median over repeats of another's seconds over the engine's.
"""

import argparse
import asyncio
import collections
from concurrent import futures
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time

import httpx
import jax
import jax.numpy as jnp
import numpy as np

from agentflow_jax import records
from agentflow_jax.assembly import model_files
from agentflow_jax.core import flops, forest, model, peaks, published
from agentflow_jax.files import reading
from agentflow_jax.inference import api, choices, engine, simple_engine
from agentflow_jax.weights import model_directory

MODELS = published.MODELS | {
  'tiny': model.ModelConfig(
    vocab_size=512,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=128,
    max_positions=8192,
  )
}


def _latency(text):
  kind, _, mean = text.partition(':')
  try:
    mean = float(mean)
  except ValueError:
    mean = -1.0
  if kind not in ('exp', 'fixed') or mean < 0:
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither exp:SECONDS nor fixed:SECONDS'
    )
  return kind, mean


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--model', choices=sorted(MODELS), default='smollm2-135m')
  parser.add_argument('--weights', default='')
  parser.add_argument('--trace', default='')
  for name, value in (
    ('requests', 32),
    ('group_size', 8),
    ('turns', 3),
    ('prompt_len', 1024),
    ('shared_prefix', 768),
    ('memory_len', 96),
    ('new_tokens', 64),
    ('slots', 32),
    ('decode_chunk', 8),
    ('kv_tokens', 0),
    # None: as the engine chooses.
    ('prefill_pieces', None),
    ('piece_tokens', None),
    ('prefill_burst', None),
    ('lanes', None),
  ):
    parser.add_argument(f'--{name}', type=int, default=value)
  parser.add_argument(
    '--attention', choices=('auto', 'blocks', 'kernel', 'gathered'), default='auto'
  )
  parser.add_argument('--read_share', type=float, default=None)
  parser.add_argument('--kv_dtype', choices=('', 'int8'), default='')
  parser.add_argument('--score', type=int, default=0)
  parser.add_argument('--tool_latency', type=_latency, default='exp:1.0')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--engine', choices=('both', 'paged', 'simple'), default='both')
  parser.add_argument('--servers', default='')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--out', default='')
  return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class _Turn:
  prompt_ids: tuple[int, ...]
  new_tokens: int


def _made_up(args, vocab_size, seed=0):
  """Returns rollouts, each a list of turns."""
  rng = np.random.default_rng(seed)
  draw = lambda n: tuple(rng.integers(0, vocab_size, n).tolist())
  cards, tail, rollouts = draw(args.shared_prefix), draw(8), []
  for i in range(args.requests):
    if i % args.group_size == 0:
      query = draw(args.prompt_len - len(cards) - len(tail))
    memory, turns = (), []
    for _ in range(args.turns):
      turns.append(_Turn(cards + query + memory + tail, args.new_tokens))
      memory += draw(args.memory_len)
    rollouts.append(turns)
  return rollouts


def _traced(path):
  """Returns the rollouts of a trace."""
  rollouts = collections.defaultdict(list)
  try:
    for line in reading.json_lines(path):
      turn = line.value
      try:
        rollouts[turn['group'], turn['rollout']].append(
          (
            turn['turn'],
            _Turn(tuple(turn['prompt_ids']), max(len(turn['response_ids']), 1)),
          )
        )
      except (KeyError, TypeError) as e:
        raise SystemExit(f'{line.where}: no turn: {e!r}') from None
  except reading.FileError as e:
    raise SystemExit(str(e)) from None
  if not rollouts:
    raise SystemExit(f'{path}: holds no turn')
  return [
    [turn for _, turn in sorted(turns, key=lambda t: t[0])]
    for _, turns in sorted(rollouts.items())
  ]


def _request(i, turn, new):
  return api.Request(
    prompt_ids=new.prompt_ids,
    key_words=(i, turn),
    sampling=records.SamplingSpec(max_new_tokens=new.new_tokens),
  )


def _latencies(args, rollouts):
  """Returns seconds [rollout][turn]: of the tool after each turn but the last."""
  rng = np.random.default_rng(1)
  kind, mean = args.tool_latency
  draw = (lambda: rng.exponential(mean)) if kind == 'exp' else lambda: mean
  return [[draw() for _ in turns[1:]] for turns in rollouts]


def _is_cpu():
  return jax.default_backend() == 'cpu'


def _limits(dtype):
  """Returns this process's fastest product [FLOP/s] and reading [bytes/s]."""
  # Large enough that a launch does not count.
  width, size = (2048, 2**27) if _is_cpu() else (8192, 2**30)
  flop = peaks.measured(dtype, (width,))
  if not _is_cpu():
    x = jnp.ones(size, jnp.float32)
    read = jax.jit(lambda x: x.reshape(64, -1).max(axis=1))
    seconds = _fastest(lambda: jax.block_until_ready(read(x)))
    return flop, x.nbytes / seconds
  # XLA reads an array with one core, NumPy with as many as there are threads.
  cores = os.cpu_count() or 1
  x = np.ones((cores, min(size, 2**29 // cores)), np.float32)
  with futures.ThreadPoolExecutor(len(x)) as threads:
    seconds = _fastest(lambda: list(threads.map(np.max, x)))
  return flop, x.nbytes / seconds


def _fastest(call):
  """Returns the seconds of the fastest of six calls."""
  seconds = []
  for _ in range(6):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return min(seconds)


async def _run(sampler, rollouts, latencies):
  """Returns (turn, result) of all turns."""

  async def one(i):
    found = []
    for turn, new in enumerate(rollouts[i]):
      found.append((new, await sampler.generate(_request(i, turn, new))))
      if turn < len(latencies[i]):
        await asyncio.sleep(latencies[i][turn])
    return found

  found = await asyncio.gather(*map(one, range(len(rollouts))))
  return [x for some in found for x in some]


def _gaps(args, config, params, done):
  """Returns |engine's - a forward pass's| log probabilities of some responses."""
  every = max(len(done) // args.score, 1)
  some = done[::every][: args.score]
  longest = max(len(t.prompt_ids) + len(r.response_ids) for t, r in some)

  @jax.jit
  def score(params, ids, size):
    at = jnp.arange(longest)[None]
    logits = model.forward(config, params, ids[None], at, jnp.full_like(at, size))
    # The logits of a place are of the token that follows it.
    return jnp.take_along_axis(
      jax.nn.log_softmax(logits[0, :-1]), ids[1:, None], axis=1
    )[:, 0]

  gaps = []
  for turn, result in some:
    ids = np.array(turn.prompt_ids + result.response_ids, np.int32)
    scores = score(params, np.pad(ids, (0, longest - len(ids))), len(ids))
    first = len(turn.prompt_ids) - 1
    gaps.append(
      np.abs(np.asarray(scores)[first : len(ids) - 1] - np.array(result.logprobs))
    )
  gaps = np.concatenate(gaps)
  return {
    'tokens': len(gaps),
    'mean': gaps.mean().item(),
    'p99': np.quantile(gaps, 0.99).item(),
    'max': gaps.max().item(),
  }


def _shapes(args, rollouts):
  """Returns the engine's shapes."""
  try:
    return api.EngineConfig(
      slots=args.slots,
      max_prompt_tokens=max(len(t.prompt_ids) for r in rollouts for t in r),
      max_new_tokens=max(t.new_tokens for r in rollouts for t in r),
      prefill_pieces=args.prefill_pieces,
      piece_tokens=args.piece_tokens,
      decode_chunk=args.decode_chunk,
      kv_tokens=args.kv_tokens,
      prefill_burst=args.prefill_burst,
      read_share=args.read_share,
      attention=args.attention,
      kv_dtype=args.kv_dtype,
      lanes=args.lanes,
    )
  except ValueError as e:
    raise SystemExit(str(e)) from None


def _paged(args, config, params, rollouts, latencies):
  shapes = _shapes(args, rollouts)
  with engine.Engine(config, shapes, params, copy=False) as sampler:
    sampler.warmup((False,))
    # Once each, so that nothing below is a first call.
    warm = [[_Turn((0,) * 40, 2)]]
    asyncio.run(_run(sampler, warm, [[]]))
    sampler.update_params(params, 1)  # Forgets what was read.
    before = sampler.stats()
    start = time.perf_counter()
    done = asyncio.run(_run(sampler, rollouts, latencies))
    seconds = time.perf_counter() - start
    time.sleep(0.1)  # The thread adds up its last turn.
    after = sampler.stats()
  spent = {
    f.name: getattr(after, f.name) - getattr(before, f.name)
    for f in dataclasses.fields(after)
  }
  unique, pairs = forest.unique_tokens(
    [np.array(turn.prompt_ids) for turns in rollouts for turn in turns]
  )
  size = jnp.dtype(config.dtype).itemsize
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  slots = np.mean([len(t.prompt_ids) + t.new_tokens / 2 for r in rollouts for t in r])
  of_head = config.head_dim + 4 if args.kv_dtype else config.head_dim * size
  kv = 2 * config.n_layers * config.n_kv_heads * of_head
  step_bytes = weights + args.slots * slots * kv
  step = flops.forward(
    config, flops.Work(args.slots, int(args.slots * slots), args.slots)
  )
  steps = spent['decode_steps'] / sampler.lanes
  read = flops.forward(config, flops.Work(unique, pairs, 0))
  return {
    'settings': choices.said(sampler.config),
    'seconds': seconds,
    'rollouts_per_minute': 60 * len(rollouts) / seconds,
    'prefill_tokens': spent['prefill_tokens'],
    'unique_prompt_tokens': unique,
    'prefill_calls': spent['prefill_calls'],
    'prefill_seconds': spent['prefill_seconds'],
    'decode_steps': steps,
    'decode_seconds': spent['decode_seconds'],
    'prefill_over_unique': spent['prefill_tokens'] / unique,
    'prefill_bytes_per_second': (
      sum(x.nbytes for x in jax.tree.leaves(params['layers']))
      * spent['prefill_calls']
      * sampler.lanes
      / max(spent['prefill_seconds'], 1e-9)
    ),
    'prefix_hit_rate': spent['hit_tokens'] / max(spent['prompt_tokens'], 1),
    'prefill_tokens_per_second': (
      spent['prefill_tokens'] / max(spent['prefill_seconds'], 1e-9)
    ),
    'prefill_flops_per_second': (
      read * spent['prefill_tokens'] / unique / max(spent['prefill_seconds'], 1e-9)
    ),
    'decode_tokens_per_second': (spent['sampled_tokens'] / spent['decode_seconds']),
    'decode_step_seconds': spent['decode_seconds'] / steps,
    'decode_flops_per_second': step * steps / spent['decode_seconds'],
    'decode_bytes_per_second': step_bytes * steps / spent['decode_seconds'],
    'slot_occupancy': (spent['sampled_tokens'] / steps / args.slots),
    'slots_used': spent['slot_seconds'] / spent['pending_seconds'] / args.slots,
    'pages_used': (spent['page_seconds'] / spent['pending_seconds'] / after.pages),
    'device_idle_share': 1
    - (spent['prefill_seconds'] + spent['decode_seconds']) / spent['pending_seconds'],
    'seconds_over_device': seconds
    / (spent['prefill_seconds'] + spent['decode_seconds']),
    # As if each token had been read once, as fast as they were.
    'seconds_over_unique': seconds
    / (
      spent['prefill_seconds'] * unique / max(spent['prefill_tokens'], 1)
      + spent['decode_seconds']
    ),
    'queue_seconds': spent['queue_seconds'] / spent['requests'],
    'first_token_seconds': (spent['first_token_seconds'] / spent['requests']),
    'compilations': spent['compilations'],
  } | ({'logprob_gap': _gaps(args, config, params, done)} if args.score else {})


def _simple(args, config, params, rollouts, latencies):
  longest = max(len(t.prompt_ids) for r in rollouts for t in r)
  sampler = simple_engine.SimpleEngine(
    config,
    params,
    slots=args.slots,
    max_prompt_tokens=longest,
    max_new_tokens=max(t.new_tokens for r in rollouts for t in r),
  )
  for length in {len(t.prompt_ids) for r in rollouts for t in r}:
    sampler.generate([_request(0, 0, _Turn((0,) * length, 2))] * args.slots)
  sampler.read_tokens, sampler.read_seconds, steps = 0, 0.0, 0
  start = time.perf_counter()
  for first in range(0, len(rollouts), args.slots):
    batch = range(first, min(first + args.slots, len(rollouts)))
    for turn in range(max(len(rollouts[i]) for i in batch)):
      some = [i for i in batch if turn < len(rollouts[i])]
      requests = [_request(i, turn, rollouts[i][turn]) for i in some]
      sampler.generate(requests)
      steps += max(r.sampling.max_new_tokens for r in requests)
      time.sleep(
        max([latencies[i][turn] for i in some if turn < len(latencies[i])], default=0.0)
      )
      print(f'simple: turn {turn + 1}', file=sys.stderr)
  seconds = time.perf_counter() - start
  tokens, spent = sampler.read_tokens, sampler.read_seconds
  length = np.mean([len(t.prompt_ids) for r in rollouts for t in r])
  read = flops.forward(config, flops.Work(tokens, int(tokens * length / 2), 0))
  return {
    'seconds': seconds,
    'rollouts_per_minute': 60 * len(rollouts) / seconds,
    'prefill_tokens': tokens,
    'prefill_tokens_per_second': tokens / spent,
    'prefill_seconds': spent,
    'prefill_flops_per_second': read / spent,
    'decode_steps': steps,
  }


class _Server:
  """A server as `_run` asks an engine."""

  def __init__(self, client, model_name):
    self._client, self._model = client, model_name

  async def generate(self, request):
    wanted = request.sampling.max_new_tokens
    answer = await self._client.post(
      'completions',
      json={
        'model': self._model,
        'prompt': list(request.prompt_ids),
        'max_tokens': wanted,
        'temperature': 1.0,
        'ignore_eos': True,
      },
    )
    answer.raise_for_status()
    got = answer.json()['usage']['completion_tokens']
    if got != wanted:  # Which would not be the same work.
      raise SystemExit(f'{self._client.base_url}: {got} tokens, not {wanted}')


async def _served(url, rollouts, latencies):
  """Returns the seconds that a server takes for rollouts."""
  limits = httpx.Limits(max_connections=None)
  async with httpx.AsyncClient(
    base_url=url, timeout=None, limits=limits, trust_env=False
  ) as client:
    listed = await client.get('models')
    if listed.is_error:
      raise SystemExit(
        f'{listed.url}: status {listed.status_code}; --servers wants the address that'
        ' ends in /v1'
      )
    server = _Server(client, listed.json()['data'][0]['id'])
    await _run(server, [[_Turn((5,) * 40, 2)]], [[]])
    start = time.perf_counter()
    await _run(server, rollouts, latencies)
    return time.perf_counter() - start


def _beside(args, config, params, latencies):
  """Returns what the engines and servers take for the same rollouts."""
  servers = dict(part.split('=', 1) for part in args.servers.split(','))
  seconds, settings = collections.defaultdict(list), ''
  for repeat in range(args.repeats):
    rollouts = _made_up(args, config.vocab_size, seed=repeat)
    paged = _paged(args, config, params, rollouts, latencies)
    seconds['paged'].append(paged['seconds'])
    settings = paged['settings']
    for name, url in servers.items():
      seconds[name].append(asyncio.run(_served(url, rollouts, latencies)))
    if args.engine != 'paged':
      simple = _simple(args, config, params, rollouts, latencies)
      seconds['simple'].append(simple['seconds'])
    print({k: v[-1] for k, v in seconds.items()}, file=sys.stderr, flush=True)
  return {
    'settings': settings,
    'seconds': dict(seconds),
    'times': {
      name: statistics.median(
        theirs / ours for theirs, ours in zip(seconds[name], seconds['paged'])
      )
      for name in seconds
      if name != 'paged'
    },
  }


def _shares(rates, flop_limit, byte_limit):
  """Returns an engine's rates as shares of the limits, and which one is nearer."""
  shares = {}
  for what in ('prefill', 'decode'):
    found = {
      'matmul_peak': rates.get(f'{what}_flops_per_second', 0) / flop_limit,
      'bandwidth': rates.get(f'{what}_bytes_per_second', 0) / byte_limit,
    }
    shares |= {f'{what}_share_of_{k}': v for k, v in found.items() if v}
    if all(found.values()):
      shares[f'{what}_limit'] = max(found, key=found.__getitem__)
  return shares


def main():
  args = _arguments()
  if args.score < 0:
    raise SystemExit('--score must not be negative')
  if not args.trace and args.prompt_len < args.shared_prefix + 8:
    raise SystemExit('--prompt_len must exceed --shared_prefix by 8 or more')
  if args.weights:
    try:
      loaded = model_files.load(args.weights, dtype=args.dtype)
    except model_directory.CheckpointError as e:
      raise SystemExit(f'--weights: {e}') from None
    config, params = loaded.config, jax.device_put(loaded.params)
  else:
    config = dataclasses.replace(
      MODELS[args.model], dtype=args.dtype, param_dtype=args.dtype
    )
    params = jax.jit(model.init_params, static_argnums=0)(config, jax.random.key(0))
  if args.trace:
    rollouts = _traced(args.trace)
  else:
    rollouts = _made_up(args, config.vocab_size)
  latencies = _latencies(args, rollouts)
  result = {
    'arguments': vars(args),
    'device': jax.devices()[0].device_kind,
    'rollouts': len(rollouts),
  }
  if args.servers:
    result |= _beside(args, config, params, latencies)
    if args.out:
      pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))
    return
  runs = {'paged': _paged, 'simple': _simple}
  names = list(runs) if args.engine == 'both' else [args.engine]
  limits = [_limits(args.dtype)]
  for name in names:
    result[name] = runs[name](args, config, params, rollouts, latencies)
    print(name, json.dumps(result[name], indent=1), file=sys.stderr)
    limits.append(_limits(args.dtype))
  # A machine that is shared has slow minutes: the best of all counts.
  flop_limit, byte_limit = map(max, zip(*limits))
  result |= {
    'matmul_peak_flops': flop_limit,
    'bandwidth_bytes_per_second': byte_limit,
    'limits_before_and_after_each_engine': limits,
  }
  for name in names:
    result[name] |= _shares(result[name], flop_limit, byte_limit)
  if args.engine == 'both':
    simple, seconds = result['simple'], result['paged']['seconds']
    result['times_the_rollouts_per_minute'] = simple['seconds'] / seconds
    # What the simple engine loses where its prefill reads at less than that.
    share = min(simple['prefill_share_of_matmul_peak'] / 0.6, 1)
    faster = simple['seconds'] - (1 - share) * simple['prefill_seconds']
    result['times_were_its_prefill_at_60_percent'] = faster / seconds
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + '\n')
  print(json.dumps(result, indent=1))


if __name__ == '__main__':
  main()
