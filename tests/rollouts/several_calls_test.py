"""Turns that make several calls: on disk, in totals, in words, and labelled."""

import pytest

from agentflow_jax import records
from agentflow_jax.rollouts import mistakes, rollout_files, showing, totals
from agentflow_jax.rollouts import world_totals

_ARGUMENTS = records.ToolErrorKind.ARGUMENTS
_TASK = records.Task('t', 'Which one?', ('Oslo',), 'match')


def _found(what, **arguments):
  call = records.ToolCall('search', arguments)
  return call, records.ToolResult(f'found {what}', counts={'hits': 1})


def _refused(text, kind):
  return None, records.ToolResult(text, _ARGUMENTS, counts={kind: 1})


def _turn(*attempts, text='x'):
  (call, result), *more = attempts or [(None, None)]
  return records.Turn(
    records.Completion(text, (1,), (2,), (-0.5,)),
    records.SamplingSpec(),
    call=call,
    result=result,
    more=tuple(more),
  )


_INNER = _found('c', q='c')
_PROGRAM = (
  records.ToolCall('code', {'code': 'x'}),
  records.ToolResult('3', inner=(_INNER,)),
)
_ALL = (
  _found('a', q='a'),
  _refused("unknown tool 'nix'", 'unknown_tool'),
  _PROGRAM,
  _refused('A tool call could not be read', 'malformed_call'),
  (
    records.ToolCall('search', {'z': 'two words'}),
    records.ToolResult('no z', _ARGUMENTS),
  ),
)


def _rollout(*turns, reward=0.0, status=records.Status.OUT_OF_TURNS):
  return records.Trajectory('t', 0, status, turns, reward=reward)


def test_a_turn_says_what_it_tried_called_and_got():
  turn = _turn(*_ALL)
  assert turn.attempts == _ALL and len(turn.results) == 5
  assert turn.calls == (_ALL[0], _PROGRAM, _INNER, _ALL[4])
  pending = (records.ToolCall('search', {}), None)
  assert _turn(_ALL[0], pending).calls == (_ALL[0],)
  assert _turn(pending).attempts == (pending,) and _turn(pending).results == ()
  assert _turn().attempts == ()


def test_it_is_kept_on_disk():
  pending = (records.ToolCall('search', {}), None)
  group = records.Group(_TASK, (_rollout(_turn(*_ALL, pending), _turn()),))
  (back,) = rollout_files.from_bytes(rollout_files.to_bytes([group]), 'x')
  assert back == group
  # A turn of one call is written as before.
  one = rollout_files.to_bytes([records.Group(_TASK, (_rollout(_turn(_ALL[0])),))])
  assert all('more' not in line for line in rollout_files._lines(one, 'x'))


def test_it_is_counted_call_by_call():
  done = _rollout(_turn(*_ALL))
  assert totals.tool_errors([done]) == (3, 5)
  assert totals.tool_calls([done]) == {'code': 1, 'search': 3}
  assert totals.tool_counts([done]) == {
    'hits': 2,
    'malformed_call': 1,
    'unknown_tool': 1,
  }
  world = records.Task('t', 'q', (), 'checks', world=records.World('box', {}))
  assert world_totals.of_groups([records.Group(world, (done,))])['calls'] == 4


def test_it_is_shown():
  done = _rollout(_turn(*_ALL))
  (row,) = showing.rows(1, _TASK, done)
  assert (row['tool'], row['result']) == ('search', 'found a')
  assert [(c['tool'], c['tool_error']) for c in row['calls']] == [
    (None, 'arguments'),
    ('code', None),
    ('search', None),
    (None, 'arguments'),
    ('search', 'arguments'),
  ]
  said = showing.in_words(1, _TASK, done)
  assert 'search {"q": "c"} -> found c' in said and '! unknown tool' in said


def test_it_is_labelled_call_by_call():
  done = _rollout(_turn(*_ALL), _turn(_found('d', q='d')))
  found = mistakes.of_trajectory(_TASK, done)
  assert [(m.label.value, m.turn, m.made_good) for m in found] == [
    ('format', 0, True),
    ('selection', 0, True),
    ('arguments', 0, True),
    ('late', 2, False),
  ]
  assert mistakes.first_cause(done, found) is mistakes.Label.LATE
  totals_of = mistakes.of_groups([records.Group(_TASK, (done,))])
  assert totals_of['calls_valid'] == 4 / 5


@pytest.mark.parametrize(
  'attempt, label',
  [(_ALL[1], 'selection'), (_ALL[3], 'format'), (_ALL[4], 'arguments')],
)
def test_what_was_never_made_good_is_the_first_cause(attempt, label):
  done = _rollout(_turn(_ALL[0], attempt))
  cause = mistakes.first_cause(done, mistakes.of_trajectory(_TASK, done))
  assert cause.value == label
