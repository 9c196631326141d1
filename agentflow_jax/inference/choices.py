"""Chooses the timing of an engine where its config leaves it open.

The rule reads the network's shape, the kind of the device and the number of cores, and
measures nothing: two runs of one config on machines of one kind are set up alike.

On a CPU, for a network with 20 million parameters or more in its blocks:

- Two lanes where there are two cores or more, rows are gathered and one device samples.
  XLA computes the small products of attention on one core, so that two programs side by
  side use both.
- One piece of 112 tokens a lane: about what a turn adds to a prompt. A call for a piece
  that is half empty costs nearly as much.
- All requests are read before more is decoded (read_share=1, prefill_burst=64), because
  a step of decoding costs the same for one row as for all.

For a smaller network on a CPU the launches of programs count, not their products: one
lane, 8 pieces of 32 tokens, half of the requests read before more is decoded. A chunk
waits for rollouts that are between two turns, for up to twice the time that it takes
(company_chunks=2), because agents and tools often run on the same cores and need that
time to make their next requests. With larger networks, and on other devices, a chunk
does not wait (company_chunks=0).

On GPUs and TPUs: one lane, 16 pieces of 128 tokens, and all requests read before more
is decoded. docs/performance.md has the measurements on GPUs; there are none on TPUs.
"""

import dataclasses
import os

from agentflow_jax.core import model
from agentflow_jax.inference import api

_LARGE = 20_000_000
_FIELDS = (
  'lanes',
  'prefill_pieces',
  'piece_tokens',
  'prefill_burst',
  'read_share',
  'company_chunks',
)


def chosen(
  config: api.EngineConfig,
  network: model.ModelConfig,
  platform: str,
  can_have_lanes: bool,
  cores: int | None = None,
) -> api.EngineConfig:
  """Returns a config in which nothing is left open.

  Args:
    config: config whose fields lanes, prefill_pieces, piece_tokens, prefill_burst,
      read_share and company_chunks may be None.
    network: network that is sampled from.
    platform: kind of the device that samples: 'cpu', 'gpu' or 'tpu'.
    can_have_lanes: whether rows are gathered and one device samples, see
      programs.reading_of.
    cores: number of CPU cores; None for those that this process may use.
  """
  open_fields = [name for name in _FIELDS if getattr(config, name) is None]
  if not open_fields:
    return config
  if cores is None:
    may_use = getattr(os, 'sched_getaffinity', None)  # Not on every system.
    cores = len(may_use(0)) if may_use else os.cpu_count() or 1
  large = _block_parameters(network) >= _LARGE
  on_cpu = platform == 'cpu'
  if on_cpu and not large:
    lanes, pieces, tokens, burst, share, company = 1, 8, 32, 16, 0.5, 2.0
  else:
    wants_lanes = on_cpu and cores > 1 and can_have_lanes
    lanes = 2 if wants_lanes and config.slots % 2 == 0 else 1
    pieces, tokens = (1, 112) if on_cpu else (16, 128)
    burst, share, company = 64, 1.0, 0.0
  lanes = lanes if config.lanes is None else config.lanes
  if config.prefill_pieces is not None and config.prefill_pieces % lanes:
    lanes = 1
  longest = -(-config.max_prompt_tokens // config.page_tokens) * config.page_tokens
  by_rule = {
    'lanes': lanes,
    'prefill_pieces': lanes * -(-pieces // lanes),
    'piece_tokens': min(
      max(tokens // config.page_tokens, 1) * config.page_tokens, longest
    ),
    'prefill_burst': burst,
    'read_share': share,
    'company_chunks': company,
  }
  return dataclasses.replace(config, **{name: by_rule[name] for name in open_fields})


def _block_parameters(network: model.ModelConfig) -> int:
  """Returns the number of parameters in the kernels of all blocks."""
  d, e = network.d_model, network.head_dim
  attention = d * e * (2 * network.n_heads + 2 * network.n_kv_heads)
  return network.n_layers * (attention + 3 * d * network.d_ff)


def said(config: api.EngineConfig) -> str:
  """Returns what was chosen, as flags would say it."""
  return ', '.join(f'engine.{name}={getattr(config, name):g}' for name in _FIELDS)
