"""Shapes of an engine that serves: the model's context, or what fits in memory.

A run's engine has the sizes of its own prompts. Clients of a server bring others, so
what no flag sets is chosen here: prompts and responses fill the model's context
together, and keys and values take a share of the memory that is free once the
parameters are there.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Collection
from typing import Any

import jax

from agentflow_jax.config import schema
from agentflow_jax.core import model
from agentflow_jax.inference import api, pages as pages_lib, programs

# Share of the free memory that keys and values may take. Other programs of a host need
# memory, too; a device is used by one process, which also needs room for activations.
_SHARE_OF_HOST, _SHARE_OF_DEVICE = 0.5, 0.8
_LENGTHS = ('max_prompt_tokens', 'max_new_tokens')
_CGROUPS = (  # (limit, usage), of version 2 and of version 1.
  ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current'),
  (
    '/sys/fs/cgroup/memory/memory.limit_in_bytes',
    '/sys/fs/cgroup/memory/memory.usage_in_bytes',
  ),
)


def fitted(
  config: api.EngineConfig,
  network: model.ModelConfig,
  sharding: jax.sharding.Sharding,
  given: Collection[str],
  room: int | None,
) -> api.EngineConfig:
  """Returns the shapes of a server.

  Args:
    config: shapes of the config.
    network: network that is served.
    sharding: sharding of the pages.
    given: names of the fields of `config` that flags set, which stay as they are.
    room: memory for keys and values [bytes]; None where it is not known, and nothing
      is made smaller.

  Raises:
    ConfigError: memory does not hold keys and values of two tokens.
  """
  context, page = network.max_positions, config.page_tokens
  lengths = {
    name: getattr(config, name) if name in given else context - 1 for name in _LENGTHS
  }
  row = min(context, sum(lengths.values()))
  if 'row_tokens' in given:
    row = config.row_tokens or row
  else:
    # As long as one fits; two pages more are the pool's own.
    tokens = [] if room is None else [room // bytes_per_token(network, config)]
    if 'kv_tokens' in given and config.kv_tokens:
      tokens.append(config.kv_tokens)
    row = min([row, *((held // page - 2) * page for held in tokens)])
    # Sizes that flags set hold, even where less memory is free.
    row = max([row, *(lengths[name] + 1 for name in _LENGTHS if name in given)])
    row = min(row, context)
  if row < 2:
    raise schema.ConfigError(
      f'engine: {(room or 0) / 1e6:.1f} MB of memory for keys and values hold no'
      ' request'
    )
  for name in _LENGTHS:
    if name not in given:
      lengths[name] = min(lengths[name], row - 1)
  changes: dict[str, Any] = dict(lengths)
  if 'row_tokens' not in given:
    # 0 where the longest prompt and the longest response bound a row already.
    changes['row_tokens'] = row if row < sum(lengths.values()) else 0
  if 'kv_tokens' not in given:
    changes['kv_tokens'] = 0
  config = dataclasses.replace(config, **changes)
  if room is None:
    return config
  return _within(config, network, sharding, given, room)


def _within(config, network, sharding, given, room) -> api.EngineConfig:
  """Takes as many slots, and as many pages, as the memory holds."""
  tokens = room // bytes_per_token(network, config)
  wanted = config.slots
  if _is_gathered(config, network, sharding):
    # A row of contiguous memory for each slot, beside its pages.
    row = (config.table_pages + 1) * config.page_tokens
    slots = max(min(wanted, tokens // (2 * row)), 1)
  else:
    slots = wanted  # Requests wait for pages.
  if 'slots' not in given and slots < wanted:
    # So that lanes, if they are given, still divide it.
    lanes = config.lanes or (2 if slots > 1 else 1)
    config = dataclasses.replace(config, slots=max(slots - slots % lanes, lanes))
  needed = config.pages * config.page_tokens
  if 'kv_tokens' not in given and tokens < needed:
    least = (-(-config.longest // config.page_tokens) + 1) * config.page_tokens
    kept = max(tokens // config.page_tokens * config.page_tokens, least)
    if kept < needed:
      config = dataclasses.replace(config, kv_tokens=kept)
  return config


def _is_gathered(config, network, sharding) -> bool:
  settled = programs.settled(network, config, sharding)
  return programs.reading_of(network, settled, sharding).way == 'gathered'


def bytes_per_token(network: model.ModelConfig, config: api.EngineConfig) -> int:
  """Returns the size of a token's keys and values in all layers [bytes]."""
  count = 2
  pool = jax.eval_shape(
    lambda: pages_lib.make_pool(network, count, config.page_tokens, config.kv_dtype)
  )
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool))
  return -(-size // (count * config.page_tokens))


def said(config: api.EngineConfig, network: model.ModelConfig) -> str:
  """Returns the shapes as a line for people."""
  size = config.pages * config.page_tokens * bytes_per_token(network, config)
  context = network.max_positions
  bound = '' if config.longest >= context else f' (the model has {context:,})'
  return (
    f'a prompt and its response have {min(config.longest, context):,} tokens together'
    f'{bound}: at most {config.max_prompt_tokens:,} of a prompt,'
    f' {config.max_new_tokens:,} of a response; {config.slots} slots,'
    f' {size / 1e9:.2f} GB of keys and values'
  )


def free_bytes(params: Any) -> int | None:
  """Returns the memory that keys and values may take [bytes].

  Args:
    params: parameters that were placed on the device that samples.

  Returns:
    None where neither the device nor the operating system tells.
  """
  device = next(iter(jax.tree.leaves(params)[0].sharding.device_set))
  # An engine may take the layers apart, for which it holds them twice for a moment.
  twice = sum(x.nbytes for x in jax.tree.leaves(params))
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    if 'bytes_limit' not in stats:
      return None
    free = stats['bytes_limit'] - stats.get('bytes_in_use', 0) - twice
    return max(int(free * _SHARE_OF_DEVICE), 0)
  free = _free_host()
  return None if free is None else max(int((free - twice) * _SHARE_OF_HOST), 0)


def _free_host() -> int | None:
  """Returns the memory that this process may still take [bytes], if it is known."""
  free = math.inf
  try:
    with open('/proc/meminfo') as file:
      for line in file:
        if line.startswith('MemAvailable:'):
          free = int(line.split()[1]) * 1024
  except (OSError, ValueError, IndexError):
    try:
      free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (OSError, ValueError):
      pass
  for limit, usage in _CGROUPS:
    try:
      bound, used = (pathlib.Path(p).read_text().strip() for p in (limit, usage))
      if bound != 'max':
        free = min(free, int(bound) - int(used))
    except (OSError, ValueError):
      continue
  return None if math.isinf(free) else max(int(free), 0)
