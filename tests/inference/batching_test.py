"""What is read next, how calls are laid out, and how rows end."""

import dataclasses
import random

import jax
from jax.experimental import topologies
import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.core import handover, hlo, model, sharding
from agentflow_jax.inference import api, batching, decoding, pages, prefixes
from agentflow_jax.inference import programs as programs_lib, sampling

_PIECES = {'lanes': 1, 'prefill_pieces': 8, 'piece_tokens': 32}
_CONFIG = api.EngineConfig(
  slots=4,
  max_prompt_tokens=40,
  max_new_tokens=5,
  page_tokens=4,
  prefill_pieces=3,
  piece_tokens=8,
  max_stop_ids=3,
)


def _request(prompt_ids, key=0, stop_ids=(), stop_fn=None, **sampling):
  sampling.setdefault('max_new_tokens', 5)
  return api.Request(
    prompt_ids=tuple(prompt_ids),
    key_words=(key, key + 1),
    sampling=records.SamplingSpec(**sampling),
    stop_ids=stop_ids,
    stop_fn=stop_fn,
  )


def _rows(*prompts):
  tree = prefixes.Prefixes(60, 4)
  requests = [_request(p, key=10 * i) for i, p in enumerate(prompts)]
  return [
    batching.Row(r, tree.lease(r.prompt_ids, r.sampling.max_new_tokens))
    for r in requests
  ]


def _read(pieces):
  """Marks pieces as read; returns (index of first node, tokens) of each."""
  for _, _, nodes in pieces:
    for node in nodes:
      node.ready = True
  return [(start, sum(len(node.ids) for node in nodes)) for _, start, nodes in pieces]


def test_rows_take_turns():
  long, short = _rows(range(40), range(100, 105))
  (pieces,) = batching.next_pieces([long, short], _CONFIG)
  assert [piece[0] for piece in pieces] == [long, short, long]
  assert _read(pieces) == [(0, 8), (0, 4), (2, 8)]
  assert short.is_read() and not long.is_read()
  (pieces,) = batching.next_pieces([long], _CONFIG)
  assert _read(pieces) == [(4, 8), (6, 8), (8, 7)]  # 39 in all.
  assert long.is_read()
  assert batching.next_pieces([long, short], _CONFIG) == [[]]


def test_what_rows_share_is_read_for_one_of_them():
  # Sixteen tokens in common, then 3 of the one and 7 of the other.
  first, second = _rows(range(20), [*range(16), *range(50, 58)])
  (pieces,) = batching.next_pieces([first, second], _CONFIG)
  # The second goes on where the first one's piece ends.
  assert [piece[0] for piece in pieces] == [first, second, first]
  assert _read(pieces) == [(0, 8), (2, 8), (4, 3)]
  assert first.is_read() and not second.is_read()
  assert _read(*batching.next_pieces([second], _CONFIG)) == [(4, 7)]


def test_twins_are_read_once():
  first, second = _rows(range(12), range(12))
  assert _read(*batching.next_pieces([first, second], _CONFIG)) == [(0, 8), (2, 3)]
  assert first.is_read() and second.is_read()


def test_a_row_of_one_token_needs_no_reading():
  (row,) = _rows([7])
  assert row.is_read()
  assert batching.next_pieces([row], _CONFIG) == [[]]


def test_a_group_s_turns_read_little_more_than_what_is_new():
  # 8 rollouts of 3 turns over a prompt of 1,024; 96 tokens of memory a turn.
  config = api.EngineConfig(
    slots=8, max_prompt_tokens=1300, max_new_tokens=64, **_PIECES
  )
  rng = random.Random(0)
  draw = lambda n: tuple(rng.randrange(50_000) for _ in range(n))
  tree = prefixes.Prefixes(config.pages, config.page_tokens)
  tail, prompt = draw(8), draw(1016)
  memories, read, seen = [()] * 8, 0, set()
  for _ in range(3):
    prompts = [prompt + memory + tail for memory in memories]
    seen |= {p[:n] for p in prompts for n in range(1, len(p) + 1)}
    rows = []
    for ids in prompts:
      request = _request(ids, max_new_tokens=64)
      rows.append(batching.Row(request, tree.lease(ids, 64)))
    while any(lanes := batching.next_pieces(rows, config)):
      read += sum(n for _, n in _read(*lanes))
    for row in rows:
      tree.release(row.lease)
    memories = [memory + draw(96) for memory in memories]
  assert len(seen) == 1016 + 8 + 8 * (2 * 96 + 2 * 8)
  # All is read, but the last token of a prompt: decode reads that.
  assert 0.99 * (len(seen) - 24) < read <= 1.1 * len(seen)


def test_how_pieces_are_laid_out():
  (row,) = _rows(range(1, 15))
  (pieces,) = batching.next_pieces([row], _CONFIG)
  segments = batching.pack_pieces(pieces, _CONFIG)
  assert segments.ids.tolist() == [
    [*range(1, 9)],
    [9, 10, 11, 12, 13, 0, 0, 0],
    [0] * 8,
  ]
  assert segments.starts.tolist() == [0, 8, 0]
  pages = [node.page for node in row.lease.nodes]
  assert len(pages) == 4
  assert segments.writes.tolist() == [pages[:2], pages[2:], [0, 0]]
  # A piece sees its own pages, and those before them.
  assert segments.tables[0].tolist() == pages[:2] + [0] * 30
  assert segments.tables[1].tolist() == pages + [0] * 28
  assert not segments.tables[2].any()


def test_lanes_read_what_does_not_depend_on_each_other():
  config = dataclasses.replace(_CONFIG, slots=6, prefill_pieces=4, lanes=2)
  # Sixteen tokens in common; then 8 of the first, 4 and 8 of the second. The
  # third is alone.
  first, second, third = rows = _rows(
    range(25), [*range(16), *range(50, 54), *range(60, 69)], range(70, 80)
  )
  lanes = batching.next_pieces(rows, config, 2)
  # The second goes on behind the first, so it is in its lane; and then that one
  # is full.
  assert [[row for row, *_ in lane] for lane in lanes] == [
    [first, second],
    [third, third],
  ]
  assert list(map(_read, lanes)) == [[(0, 8), (2, 8)], [(0, 8), (2, 1)]]
  lanes = batching.next_pieces([first, second], config, 2)
  # What they have in common was read before.
  assert list(map(_read, lanes)) == [[(4, 8)], [(4, 8), (6, 4)]]
  assert all(row.is_read() for row in rows)
  assert batching.next_pieces(rows, config, 2) == [[], []]


def test_a_lane_reads_on_a_desk_of_its_own():
  config = dataclasses.replace(_CONFIG, slots=6, prefill_pieces=4, lanes=2)
  (row,) = _rows(range(1, 34))
  pages_of_row = [node.page for node in row.lease.nodes]
  _read(*batching.next_pieces([row], _CONFIG))
  ((piece,), _) = batching.next_pieces([row], config, 2)
  loads, segments, copies = batching.pack_apart([piece], config, 2)
  plain = batching.pack_pieces([piece], config, 2)
  assert (segments.ids == plain.ids).all()
  assert (segments.starts == plain.starts).all()
  old, new = pages_of_row[:6], pages_of_row[6:]
  assert plain.writes.tolist() == [new, [0, 0]]
  # Six older pages are copied there, and two come back.
  there = {x: y for x, y in loads.pairs[: loads.count].tolist()}
  back = {y: x for x, y in copies.pairs[: copies.count].tolist()}
  assert sorted(there) == sorted(old) and sorted(back) == sorted(new)
  places = {0: 0} | there | back
  assert sorted(places.values()) == list(range(len(places)))
  at = lambda table: [[places[page] for page in row] for row in table.tolist()]
  assert segments.tables.tolist() == at(plain.tables)
  assert segments.writes.tolist() == at(plain.writes)


def test_how_rows_are_laid_out():
  first, second = _rows(range(10, 20), [5])
  first.request = _request(
    range(10, 20),
    key=30,
    stop_ids=(3, 4),
    top_k=5,
    top_p=0.75,
    min_p=0.25,
    temperature=0.5,
  )
  second.ids = [8, 9]
  rows = batching.pack_rows([(2, first), (0, second)], _CONFIG)
  assert rows.last.tolist() == [9, 0, 19, 0]
  assert rows.positions.tolist() == [2, 0, 9, 0]
  assert rows.sampled.tolist() == [2, 0, 0, 0]
  assert rows.left.tolist() == [3, 0, 5, 0]
  none = decoding.NO_STOP
  assert rows.stop_ids.tolist() == [[none] * 3, [none] * 3, [3, 4, none], [none] * 3]
  nodes, own = first.lease.nodes, first.lease.own
  # Its tail is copied to the first page of its own, which takes its place.
  table = [nodes[0].page, nodes[1].page, *own]
  assert rows.tables[2].tolist() == table + [0] * (32 - len(table))
  assert rows.copies.count == 1
  assert rows.copies.pairs.tolist() == [[nodes[2].page, own[0]]] + [[0, 0]] * 3
  spec = rows.sampling
  assert spec.temperature.tolist() == [1.0, 0.0, 0.5, 0.0]
  assert spec.top_k.tolist() == [0, 0, 5, 0]
  assert spec.top_p.tolist() == [1.0, 1.0, 0.75, 1.0]
  assert spec.min_p.tolist() == [0.0, 0.0, 0.25, 0.0]
  assert spec.key_words.tolist() == [[10, 11], [0, 0], [30, 31], [0, 0]]
  first.is_copied = True
  rows = batching.pack_rows([(2, first)], _CONFIG)
  assert rows.copies.count == 0


def test_how_rows_of_a_lane_are_laid_out():
  reading = pages.Reading('gathered', unrolled=True, lanes=2)
  first, second = _rows(range(10, 20), [5])
  rows = batching.pack_rows([(1, first), (0, second)], _CONFIG, reading)
  assert rows.last.tolist() == [5, 19]
  # It is decoded from what is kept of the prompt, its tail among it.
  assert not rows.tables.any() and rows.copies.count == 0
  fresh = batching.pack_fresh([(1, first)], _CONFIG, reading)
  table = [node.page for node in first.lease.nodes]
  assert first.lease.tail is not None and len(table) == 3
  assert fresh.tables.tolist() == [[0] * 32, table + [0] * 29]
  assert fresh.rows.tolist() == [1, 0] and fresh.count == 1


def test_which_parts_rows_have_in_common():
  config = api.EngineConfig(slots=8, lanes=2, max_prompt_tokens=1300, max_new_tokens=64)
  tree = prefixes.Prefixes(config.pages, config.page_tokens)
  reading = pages.Reading('gathered', lanes=2, shares=True)
  stem = tuple(range(1000))

  def row(ids):
    request = _request(ids, max_new_tokens=64)
    return batching.Row(request, tree.lease(ids, 64))

  def common(rows, reading=reading):
    packed = batching.pack_rows(enumerate(rows, 1), config, reading)
    return int(packed.common), int(packed.common_row)

  # Parts of 256 slots, and decode reads a prompt's last token.
  whole, cards = row(stem + (1,) * 300), row(stem[:800] + (2,) * 300)
  exact, more = row(stem[:768]), row(stem[:769])
  assert common([whole]) == (5, 1)
  assert common([whole, cards]) == (3, 1)
  assert common([more, whole]) == (3, 1)
  assert common([exact, whole]) == (2, 1)
  assert common([whole, cards, row((3,) * 900)]) == (0, 1)
  assert common([]) == (0, 0)
  assert common([whole, cards], pages.Reading('gathered', lanes=2)) == (0, 0)
  # Equal tokens in pages of their own are not known to be equal.
  alone = prefixes.Prefixes(config.pages, config.page_tokens, share=False)
  apart = [
    batching.Row(_request(stem, max_new_tokens=64), alone.lease(stem, 64))
    for _ in range(2)
  ]
  assert common(apart) == (0, 1)


def test_how_pages_are_read():
  model_config = model.ModelConfig(
    vocab_size=64,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_positions=9000,
  )
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def way(max_prompt_tokens=1000, **changes):
    config = api.EngineConfig(max_prompt_tokens=max_prompt_tokens, **changes, **_PIECES)
    return programs_lib.reading_of(model_config, config, here).way

  assert way() == 'gathered'  # On CPU.
  assert way(max_prompt_tokens=5000) == 'blocks'
  assert way(max_prompt_tokens=5000, attention='gathered') == 'gathered'
  lanes = lambda where, **changes: (
    programs_lib.reading_of(
      model_config, api.EngineConfig(lanes=2, **changes), where
    ).lanes
  )
  assert lanes(here) == 2
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('kv_heads',))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  for where, changes in ((here, {'attention': 'blocks'}), (spread, {})):
    with pytest.raises(ValueError, match='lanes=2: only on one device'):
      lanes(where, **changes)
  with pytest.raises(ValueError, match='round to bfloat16'):
    way(attention='kernel')


def test_shapes_do_not_depend_on_how_many_wait():
  def shapes(n):
    rows = _rows(*([i, i + 1] for i in range(n)))
    packed = (
      batching.pack_pieces(*batching.next_pieces(rows, _CONFIG), _CONFIG),
      batching.pack_rows(enumerate(rows), _CONFIG),
    )
    return jax.tree.map(lambda x: (x.shape, x.dtype), packed)

  assert shapes(0) == shapes(1) == shapes(4)


def test_more_devices_than_key_heads_send_no_keys_or_values():
  """Nor queries: each attends to what it has; layers send their sums alone."""
  model_config = model.ModelConfig(
    vocab_size=128,
    d_model=32,
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_positions=2048,
  )
  config = api.EngineConfig(
    slots=4, max_prompt_tokens=1000, max_new_tokens=24, kv_tokens=8192, **_PIECES
  )
  mesh = sharding.make_mesh(1, 4, 1, jax.devices()[:4])
  placed = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    model.param_shapes(model_config),
    sharding.param_shardings(model_config, mesh),
  )
  params = handover.Handover(model_config, mesh, split=True).shapes(placed)
  where = pages.pool_sharding(params)
  pool = jax.eval_shape(
    lambda: pages.make_pool(model_config, config.pages, config.page_tokens)
  )
  assert where.shard_shape(pool.keys.shape)[0] == 1  # Of 2.
  pool = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), pool
  )
  reading = programs_lib.reading_of(model_config, config, where)
  assert reading.way == 'gathered' and not reading.shares
  programs = programs_lib.Programs(model_config, config, params, pool, reading)
  for program, rows, tokens, drawn in (
    (programs.decode(False), 4, 1, 4 * sampling._BLOCKS * 4),
    (programs.prefill(), config.prefill_pieces, config.piece_tokens, 0),
  ):
    sent = hlo.collectives(program.as_text())
    # An embedding, then twice a layer; besides, what is sampled from: the sum of
    # each block of a row's vocabulary, and little more.
    streams = 5 * rows * tokens * model_config.d_model * 4
    assert streams <= sent.pop('all-reduce').bytes < streams + 500
    assert drawn <= sum(s.bytes for s in sent.values()) < drawn + 500


@pytest.mark.slow
@pytest.mark.parametrize('name', ['prefill', 'decode'])
def test_a_tpu_reads_and_writes_pages_where_they_lie(name, monkeypatch):
  """No copy of the pool, which its scatter and its kernel might lay out apart."""
  pytest.importorskip('libtpu')
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  found = topologies.get_topology_desc(topology_name='v5e:2x2', platform='tpu')
  here = jax.sharding.SingleDeviceSharding(found.devices[0])
  model_config = model.ModelConfig(
    vocab_size=512,
    d_model=256,
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    head_dim=128,
    d_ff=256,
    max_positions=4096,
    dtype='bfloat16',
  )
  config = api.EngineConfig(
    slots=16,
    max_prompt_tokens=1000,
    max_new_tokens=24,
    kv_tokens=2**18,
    **_PIECES | {'piece_tokens': 128},
  )
  there = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree
  )
  params = there(model.param_shapes(model_config))
  pool = there(
    jax.eval_shape(
      lambda: pages.make_pool(model_config, config.pages, config.page_tokens)
    )
  )
  reading = programs_lib.reading_of(model_config, config, here)
  assert reading.way == 'kernel' and not reading.unrolled
  programs = programs_lib.Programs(model_config, config, params, pool, reading)
  program = programs.prefill() if name == 'prefill' else programs.decode(False)
  assert ('tpu_custom_call' in program.as_text()) == (name == 'decode')
  of_pool = 2 * pool.keys.size * 2
  assert program.memory_analysis().temp_size_in_bytes < of_pool / 10


def _finish(ids, done, logprobs=None, **kwargs):
  logprobs = [-1.0] * len(ids) if logprobs is None else logprobs
  row = batching.Row(_request((1,), **kwargs), None, ids=ids, logprobs=logprobs)
  return batching.finish(row, done)


def test_how_rows_end():
  assert _finish([5, 6], done=False) is None
  assert _finish([5, 6], done=True) == (2, 'length')
  assert _finish([5, 6], done=True, stop_ids=(6,)) == (2, 'stop')
  assert _finish([5, 6], done=False, stop_fn=lambda ids: None) is None
  # The stop stays; what was sampled after it goes.
  keep_one = lambda ids: ids.index(5) + 1
  assert _finish([5, 6], done=False, stop_fn=keep_one) == (1, 'stop')
  assert _finish([5, 6], True, stop_ids=(6,), stop_fn=keep_one) == (1, 'stop')
  assert _finish([5, 6], done=True, stop_fn=lambda ids: None) == (2, 'length')


@pytest.mark.parametrize('keep', [0, -1, 3])
def test_stop_fn_may_not_keep_what_there_is_not(keep):
  with pytest.raises(ValueError, match='of 2 ids'):
    _finish([5, 6], done=False, stop_fn=lambda ids: keep)


def test_only_kept_log_probabilities_must_be_finite():
  logprobs = [-1.0, float('nan')]
  with pytest.raises(FloatingPointError):
    _finish([5, 6], True, logprobs)
  assert _finish([5, 6], True, logprobs, stop_fn=lambda ids: 1) == (1, 'stop')
  # Nor is anybody shown it, or waits for the end of it.
  seen = []
  with pytest.raises(FloatingPointError):
    _finish([5, 6, 7], False, [-1.0, np.nan, -1.0], stop_fn=seen.append)
  assert seen == [[5]]
  with pytest.raises(FloatingPointError):
    _finish([5, 6], False, [np.nan, -1.0], stop_fn=seen.append)
  assert len(seen) == 1
