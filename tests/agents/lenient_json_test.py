"""Tests of agents.lenient_json: what is found, and what is left alone."""

import json
import signal

import hypothesis
from hypothesis import strategies as st
import pytest

from agentflow_jax.agents import lenient_json


@pytest.mark.parametrize(
  'text, wanted',
  [
    ('{"a": 1}', {'a': 1}),
    ('Sure! {"a": "x {y}"} is it. {"a": 2}', {'a': 'x {y}'}),
    ('```json\n{"a": [1, {"b": null}]}\n```', {'a': [1, {'b': None}]}),
    ('{"a": 1, "B b": 2,}', {'a': 1, 'b_b': 2}),
    ("{'a': True, 'c': None}", {'a': True, 'c': None}),
    ('{"a": "said "hi" there"}', {'a': 'said "hi" there'}),
    ('{"a": 1 // one\n}', {'a': 1}),
    ('{"a": "line\nbreak"}', {'a': 'line\nbreak'}),
    ('{"a": "cut', {'a': 'cut'}),
    ('{"other": 1} {"a": 2}', {'a': 2}),
    ('{"outer": {"a": 2}}', {'a': 2}),
    ('{"other": 1}', None),
    ('{a}', None),
    ('f(x) = {1, 2}', None),
    ('no', None),
    ('', None),
    ('"a": 1', None),
  ],
)
def test_the_object_that_was_meant_is_found(text, wanted):
  assert lenient_json.find(text, {'a'}) == wanted


@hypothesis.given(
  st.dictionaries(
    st.from_regex(r'[a-z_]{1,8}', fullmatch=True),
    st.recursive(
      st.none() | st.booleans() | st.integers() | st.text(),
      lambda inner: st.lists(inner, max_size=3),
      max_leaves=5,
    ),
    min_size=1,
  ),
  st.text(alphabet='ab ,.\n`', max_size=20),
)
def test_json_is_read_as_json(value, around):
  text = f'{around}{json.dumps(value)}{around}'
  assert lenient_json.find(text, value.keys()) == value


@hypothesis.given(st.text(alphabet='{}[]":,\'a1\\ \n/', max_size=300))
def test_garbage_is_data_or_nothing(text):
  found = lenient_json.find(text, {'a'})
  assert found is None or 'a' in found


@pytest.mark.parametrize('length', [1_990, 20_000])
@pytest.mark.parametrize(
  'piece', ['{', '["', '{"a":', '{"a": (', '{"', '{a', '{"a": [', '{\'"', '\\']
)
def test_the_event_loop_does_not_wait_long(piece, length):
  def late(*_):
    raise AssertionError('still reading')

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(20)
  try:
    found = lenient_json.find(('{"a": ' + piece * length)[:length], {'b'})
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
  assert found is None


def test_a_text_beyond_the_limit_is_an_error_and_not_cut():
  text = json.dumps({'a': 'x' * 30_000})
  with pytest.raises(ValueError, match='30,009 characters; 20,000 at most'):
    lenient_json.find(text, {'a'})
