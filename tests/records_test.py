"""Tests of records."""

import dataclasses
import json
import math
import struct

import pytest

from agentflow_jax import records

KEY = records.RequestKey(7, records.Purpose.TRAIN, 3, 'q', 1)
WORDS = (1158897065, 4211198331)


def test_every_field_of_a_key_changes_its_words():
  changed = dict(
    seed=8,
    purpose=records.Purpose.EVALUATE,
    step=4,
    query='q2',
    rollout=2,
    turn=1,
    module='verifier',
    attempt=1,
  )
  assert set(changed) == {f.name for f in dataclasses.fields(KEY)}
  keys = [dataclasses.replace(KEY, **{k: v}) for k, v in changed.items()]
  words = [key.words() for key in keys]
  assert len({KEY.words(), *words}) == 9
  assert all(0 <= w < 2**32 for w in KEY.words())


def test_words_are_the_same_on_every_machine():
  # From hashlib.blake2b(repr(...), digest_size=8), which no hash seed touches.
  assert KEY.words() == WORDS


def test_fields_do_not_run_into_each_other():
  a = dataclasses.replace(KEY, query='a1', rollout=1)
  b = dataclasses.replace(KEY, query='a', rollout=11)
  assert a.words() != b.words()


def test_statuses_are_policy_or_infrastructure():
  policy = {s.value for s in records.Status if s.is_policy}
  assert policy == {
    'answered',
    'out_of_turns',
    'unparseable_plan',
    'truncated_response',
    'prompt_too_long',
    'tool_error',
    'deadline',
    'refused',
  }
  assert {s.value for s in records.Status} - policy == {
    'model_unreachable',
    'tool_unreachable',
    'reward_unreachable',
    'module_failed',
    'deadline_infrastructure',
    'aborted_late',
    'environment_unreachable',
  }


@pytest.mark.parametrize(
  'field, value',
  [
    ('temperature', -0.1),
    ('temperature', float('nan')),
    ('temperature', float('inf')),
    ('temperature', 1e-7),
    ('top_k', -1),
    ('temperature', 1e39),
    ('temperature', '1'),
    ('top_p', 1e-50),
    ('min_p', None),
    ('stop', 'END'),
    ('stop', ('END', '')),
    ('stop', (1,)),
    ('top_k', 2.5),
    ('top_p', 0.0),
    ('top_p', 1.1),
    ('min_p', -0.1),
    ('min_p', 1.1),
    ('max_new_tokens', 0),
    ('max_new_tokens', 8.0),
  ],
)
def test_sampling_refuses_what_has_no_meaning(field, value):
  with pytest.raises(ValueError, match=field):
    records.SamplingSpec(**{field: value})


@pytest.mark.parametrize(
  'fields, truncates',
  [
    ({}, False),
    ({'temperature': 0.0}, False),
    ({'top_k': 1}, True),
    ({'top_p': 0.9}, True),
    ({'min_p': 0.1}, True),
  ],
)
def test_truncates(fields, truncates):
  assert records.SamplingSpec(**fields).truncates is truncates


def test_limits_that_keep_every_token_in_float32_do_not_truncate():
  truncates = lambda **spec: records.SamplingSpec(**spec).truncates
  for top_p in (1 - 1e-9, 1 - 2**-25, 1 - 2**-24, 1 - 3e-8, 1 - 1e-7, 1.0):
    (single,) = struct.unpack('<f', struct.pack('<f', top_p))
    assert truncates(top_p=top_p) == (single < 1)
  # Nor what is smaller than all that a device may not flush to 0: the least
  # normal float32.
  tiny = 2.0**-126
  for min_p in (0.0, 1e-60, 1e-46, math.nextafter(tiny, 0), tiny, 1e-30):
    assert truncates(min_p=min_p) == (min_p >= tiny)


def test_kept_sets_are_four_bytes_a_number_and_read_back():
  kept = records.KeptSets.of((2, 1), (151_000, 3, 7))
  assert kept.counts == b'\x02\0\0\0\x01\0\0\0'
  assert len(kept.ids) == 12
  assert kept.numbers() == ((2, 1), (151_000, 3, 7))
  assert kept == records.KeptSets(kept.counts, kept.ids)
  assert records.KeptSets.of((), ()).numbers() == ((), ())


@pytest.mark.parametrize(
  'counts, ids', [((2, 1), (1, 2)), ((1,), (1, 2)), ((1, 0), (1,)), ((), (1,))]
)
def test_kept_sets_that_do_not_add_up_are_refused(counts, ids):
  with pytest.raises(ValueError, match='kept: '):
    records.KeptSets.of(counts, ids)


def test_a_world_is_json_and_reads_back():
  world = records.World(
    'w',
    {'seed': 's', 'changes': [[1, None]]},
    'p',
    ('a',),
    (records.Check('c', 'state', {'query': 'q', 'expected_value': [1]}),),
    'plan',
    True,
  )
  assert records.World.of(json.loads(json.dumps(dataclasses.asdict(world)))) == world
  assert records.World.of({'environment': 'w', 'state': {}}) == records.World('w', {})
  with pytest.raises(TypeError):
    records.World.of({'environment': 'w', 'state': {}, 'colour': 1})


@pytest.mark.parametrize(
  'value', [{'a': (1, 2)}, {1: 'a'}, {'a': float('nan')}, {'a': {1}}, ['a']]
)
def test_what_would_come_back_from_json_as_another_value_is_refused(value):
  with pytest.raises(ValueError, match="world of 'w': state"):
    records.World('w', value)
  with pytest.raises(ValueError, match="check 'c': spec"):
    records.Check('c', 'state', value)


def test_a_kind_of_check_that_there_is_not_is_named():
  with pytest.raises(ValueError, match="'c'.*unchanged.*'sql'"):
    records.Check('c', 'sql', {})


def test_the_text_of_a_task_without_a_world_is_what_it_always_was():
  """Runs that began before there were worlds have digests of it."""
  task = records.Task('a', 'b', ('c',), 'd', {'x': 'y'})
  assert repr((task,)) == (
    "(Task(id='a', query='b', answers=('c',), reward='d', tags={'x': 'y'}),)"
  )
  other = dataclasses.replace(task, world=records.World('w', {}))
  assert 'world=World(' in repr(other)


def test_a_score_is_the_weighted_sum_in_the_order_of_names():
  terms = {'b': records.Term(0.1), 'a': records.Term(0.2, 3.0), 'c': records.Term(1e17)}
  score = records.Score(terms)
  assert list(score.terms) == ['a', 'b', 'c']
  assert score.reward == ((0.2 * 3.0 + 0.1) + 1e17)
  assert score == records.Score(dict(reversed(terms.items())))


def test_the_world_of_a_task_without_one_is_an_error_that_names_the_task():
  world = records.World('w', {})
  assert records.Task('a', 'q', (), 'r', world=world).its_world is world
  with pytest.raises(ValueError, match="task 'b' has no world"):
    _ = records.Task('b', 'q', (), 'r').its_world
