"""Shapes of a server: the model's context, within the memory that is there."""

import dataclasses

import jax
import pytest

from agentflow_jax.assembly import serving_shapes
from agentflow_jax.config import schema
from agentflow_jax.core import model
from agentflow_jax.inference import api, programs

_NETWORK = model.ModelConfig(
  vocab_size=64,
  d_model=32,
  n_layers=2,
  n_heads=2,
  n_kv_heads=1,
  head_dim=16,
  d_ff=32,
  max_positions=8192,
)
_RUN = api.EngineConfig(slots=12, max_prompt_tokens=96, max_new_tokens=32)
_DEVICE = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
# Keys and values, 2 layers, 1 head of 16 numbers, 4 bytes each.
_TOKEN = 2 * 2 * 16 * 4


def _fitted(room, *given, config=_RUN, network=_NETWORK):
  return serving_shapes.fitted(config, network, _DEVICE, given, room)


def test_a_token_has_the_size_of_its_keys_and_values():
  assert serving_shapes.bytes_per_token(_NETWORK, _RUN) == _TOKEN
  int8 = dataclasses.replace(_RUN, kv_dtype='int8')  # A float32 a head beside it.
  assert serving_shapes.bytes_per_token(_NETWORK, int8) == 2 * 2 * (16 + 4)


def test_with_room_for_all_requests_fill_the_context_together():
  got = _fitted(10**9)
  assert got.longest == 8192 and got.row_tokens == 8192
  assert got.max_prompt_tokens == got.max_new_tokens == 8191
  assert (got.slots, got.kv_tokens) == (12, 0)
  assert _fitted(None) == got
  # 12 rows of pages, two of them over.
  assert got.pages * got.page_tokens == 16 + 12 * (8192 + 16)


def test_with_less_room_there_are_fewer_pages():
  room = 20_000 * _TOKEN
  got = _fitted(room)
  assert (got.longest, got.slots) == (8192, 12)
  assert got.kv_tokens == 20_000 and got.pages * got.page_tokens * _TOKEN <= room + 4096


def test_with_little_room_rows_are_shorter():
  got = _fitted(3000 * _TOKEN)
  # Of 187 pages two are the pool's; each row of contiguous memory is there twice.
  assert got.longest == 185 * 16
  assert got.max_prompt_tokens == got.max_new_tokens == got.longest - 1
  assert got.slots == 1
  with pytest.raises(schema.ConfigError, match='hold no request'):
    _fitted(40 * _TOKEN)


def test_contiguous_rows_need_memory_for_each_slot():
  short = dataclasses.replace(_NETWORK, max_positions=256)
  settled = programs.settled(short, _fitted(10**9, network=short), _DEVICE)
  assert programs.reading_of(short, settled, _DEVICE).way == 'gathered'
  got = _fitted(2 * 7 * (256 + 16) * _TOKEN, network=short)
  assert got.slots == 6  # Seven would fit, of which two lanes share six.
  assert _fitted(10**9, network=short).slots == 12


def test_what_flags_set_stays():
  config = dataclasses.replace(_RUN, max_prompt_tokens=500, slots=3, kv_tokens=4096)
  got = _fitted(10**9, 'max_prompt_tokens', 'slots', 'kv_tokens', config=config)
  assert (got.max_prompt_tokens, got.slots, got.kv_tokens) == (500, 3, 4096)
  assert got.longest == 4096 - 2 * 16  # What they hold.
  got = _fitted(10**9, 'max_prompt_tokens', 'max_new_tokens', config=_RUN)
  assert (got.max_prompt_tokens, got.max_new_tokens, got.row_tokens) == (96, 32, 0)
  # Even where memory is short.
  got = _fitted(100 * _TOKEN, 'max_prompt_tokens', config=config)
  assert got.max_prompt_tokens == 500 and got.longest == 501
  rows = dataclasses.replace(_RUN, row_tokens=1024)
  got = _fitted(10**9, 'row_tokens', config=rows)
  assert got.longest == 1024 and got.max_new_tokens == 1023


def test_sizes_are_told():
  told = serving_shapes.said(_fitted(10**9), _NETWORK)
  assert '8,192 tokens together' in told and '12 slots' in told
  assert f'{(16 + 12 * 8208) * _TOKEN / 1e9:.2f} GB' in told
  assert 'the model has 8,192' in serving_shapes.said(_fitted(3000 * _TOKEN), _NETWORK)


def test_free_memory_is_less_than_there_is(tmp_path, monkeypatch):
  params = {'w': jax.numpy.zeros((1000, 1000))}
  free = serving_shapes.free_bytes(params)
  with open('/proc/meminfo') as file:
    total = int(file.readline().split()[1]) * 1024
  assert free is not None and 0 <= free <= total / 2
  limit, usage = tmp_path / 'limit', tmp_path / 'usage'
  limit.write_text('30000000\n')
  usage.write_text('10000000\n')
  monkeypatch.setattr(serving_shapes, '_CGROUPS', ((str(limit), str(usage)),))
  # 20 MB are left, of which another copy of the parameters takes 4.
  assert serving_shapes.free_bytes(params) == 8_000_000
  limit.write_text('max\n')
  assert (serving_shapes.free_bytes(params) or 0) > 8_000_000
