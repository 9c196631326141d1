"""Checks of a world's end, against the published semantics and by hand."""

import pytest

from agentflow_jax import records
from agentflow_jax.agents.environments import checks

_A, _B = {'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}
# (column names, rows, comparison, expected value, whether it passes). Worked out by
# hand from benchmark/verifier.py of ServiceNow/EnterpriseOps-Gym: no row is [], one
# row of one column is its value, one row is a dict, several are a list of dicts;
# 'equals' is ==, 'contains' is `expected in str(actual)`, an exception fails.
_PUBLISHED = [
  (['n'], [(0,)], 'equals', 0, True),
  (['n'], [(0,)], 'equals', '0', False),
  (['n'], [('0',)], 'equals', 0, False),
  (['n'], [('0',)], 'equals', '0', True),
  (['n'], [(1,)], 'equals', True, True),
  (['n'], [(0,)], 'equals', False, True),
  (['n'], [(1,)], 'equals', 1.0, True),
  (['n'], [(1.0,)], 'equals', 1, True),
  (['n'], [(1,)], 'equals', '1', False),
  (['n'], [(None,)], 'equals', None, True),
  (['n'], [(None,)], 'equals', '', False),
  (['n'], [(None,)], 'equals', 0, False),
  (['n'], [(None,)], 'equals', [], False),
  (['n'], [('h24x7',)], 'equals', 'h24x7', True),
  (['n'], [('H24x7',)], 'equals', 'h24x7', False),
  (['n'], [('h24x7 ',)], 'equals', 'h24x7', False),
  (['n'], [], 'equals', [], True),
  (['n'], [], 'equals', None, False),
  (['n'], [], 'equals', 0, False),
  (['n'], [], 'equals', '', False),
  (['a', 'b'], [], 'equals', [], True),
  (['a', 'b'], [(1, 'x')], 'equals', _A, True),
  (['a', 'b'], [(1, 'x')], 'equals', {'b': 'x', 'a': 1}, True),
  (['a', 'b'], [(1, 'x')], 'equals', [_A], False),
  (['a', 'b'], [(1, 'x')], 'equals', [1, 'x'], False),
  (['a', 'b'], [(1, 'x')], 'equals', 1, False),
  (['a', 'b'], [(1, 'x')], 'equals', {'a': '1', 'b': 'x'}, False),
  (['a', 'b'], [(1, 'x'), (2, 'y')], 'equals', [_A, _B], True),
  (['a', 'b'], [(1, 'x'), (2, 'y')], 'equals', [_B, _A], False),
  (['a', 'b'], [(1, 'x'), (2, 'y')], 'equals', 2, False),
  (['a'], [(1,), (2,)], 'equals', [{'a': 1}, {'a': 2}], True),
  (['a'], [(1,), (2,)], 'equals', [1, 2], False),
  (['a'], [(1,), (1,)], 'equals', [{'a': 1}, {'a': 1}], True),
  (['a'], [(1,), (1,)], 'equals', {'a': 1}, False),
  (['a', 'a'], [(1, 2)], 'equals', 2, True),  # A dict keeps the last of a name.
  (['a', 'a'], [(1, 2)], 'equals', 1, False),
  (['n'], [(3,)], 'greater_than', 2, True),
  (['n'], [(2,)], 'greater_than', 2, False),
  (['n'], [(2.5,)], 'greater_than', 2, True),
  (['n'], [(3,)], 'greater_than', '2', False),
  (['n'], [('3',)], 'greater_than', 2, False),
  (['n'], [('b',)], 'greater_than', 'a', True),
  (['n'], [('2031-02-01',)], 'greater_than', '2031-01-31', True),
  (['n'], [(None,)], 'greater_than', 0, False),
  (['n'], [], 'greater_than', 0, False),
  (['n'], [], 'greater_than', [], False),
  (['a'], [(1,), (2,)], 'greater_than', 1, False),
  (['a', 'b'], [(1, 'x')], 'greater_than', 0, False),
  (['n'], [(1,)], 'greater_than', False, True),
  (['n'], [(1,)], 'less_than', 2, True),
  (['n'], [(2,)], 'less_than', 2, False),
  (['n'], [(-1,)], 'less_than', 0, True),
  (['n'], [('10',)], 'less_than', '9', True),
  (['n'], [('10',)], 'less_than', 9, False),
  (['n'], [(None,)], 'less_than', 1, False),
  (['n'], [], 'less_than', 1, False),
  (['n'], [('a pump',)], 'contains', 'pump', True),
  (['n'], [('a pump',)], 'contains', 'Pump', False),
  (['n'], [('a pump',)], 'contains', '', True),
  (['n'], [(123,)], 'contains', '2', True),
  (['n'], [(123,)], 'contains', 2, False),
  (['n'], [(None,)], 'contains', 'None', True),
  (['n'], [], 'contains', '[]', True),
  (['n'], [], 'contains', 'x', False),
  (['a', 'b'], [(1, 'x')], 'contains', "'b': 'x'", True),
  (['a', 'b'], [(1, 'x'), (2, 'y')], 'contains', "{'a': 2, 'b': 'y'}", True),
  (['a', 'b'], [(1, 'x'), (2, 'y')], 'contains', 'z', False),
  (['n'], [('x',)], 'contains', None, False),
]


@pytest.mark.parametrize(
  ('names', 'rows', 'comparison', 'expected', 'passes'), _PUBLISHED
)
def test_comparisons_are_those_that_are_published(
  names, rows, comparison, expected, passes
):
  check = checks.from_published(
    {
      'verifier_type': 'database_state',
      'name': 'n',
      'validation_config': {
        'query': 'select 1',
        'expected_value': expected,
        'comparison_type': comparison,
      },
    }
  )
  assert checks.compared(check, checks.result_value(names, rows)).passed is passes


def test_there_are_as_many_cases_as_the_issue_asks_for():
  assert len(_PUBLISHED) >= 60


def _ending(*tools, ended='', **arguments):
  calls = [(records.ToolCall(t, arguments), records.ToolResult('done')) for t in tools]
  return records.Ending(records.Status.ANSWERED, '', tuple(calls), ended)


@pytest.mark.parametrize(
  ('selected', 'least', 'called', 'passes'),
  [
    (['a'], 1, ['a'], True),
    (['a'], 1, ['b'], False),
    (['a', 'b'], 1, ['b', 'a'], True),
    (['a'], 3, ['a', 'a'], False),
    (['a'], 3, ['a', 'b', 'a'], True),
    ([], 1, [], False),
    ([], 0, [], True),
    ([], 1, ['z'], True),
  ],
)
def test_calls_need_all_tools_and_enough_calls(selected, least, called, passes):
  check = checks.from_published(
    {
      'verifier_type': 'tool_execution',
      'validation_config': {'selected_tools': selected, 'minimum_tool_calls': least},
    }
  )
  assert checks.of_calls(check, _ending(*called)).passed is passes


@pytest.mark.parametrize(
  ('spec', 'ended', 'said', 'passes'),
  [
    ({'ended': 'finish'}, 'finish', {}, True),
    ({'ended': 'finish'}, 'refuse', {}, False),
    ({'ended': 'finish'}, '', {}, False),
    ({'ended': 'refuse', 'rule': ['late']}, 'refuse', {'rule': 'late'}, True),
    ({'ended': 'refuse', 'rule': ['late']}, 'refuse', {'rule': 'limit'}, False),
    ({'ended': 'refuse', 'rule': ['late']}, 'refuse', {}, False),
    (
      {'ended': 'refuse', 'rule': ['a'], 'about': ['P1', 'P2']},
      'refuse',
      {'rule': 'a', 'about': 'P2'},
      True,
    ),
    (
      {'ended': 'refuse', 'rule': ['a'], 'about': ['P1']},
      'refuse',
      {'rule': 'a', 'about': 'P2'},
      False,
    ),
  ],
)
def test_an_ending_has_its_kind_its_rule_and_its_subject(spec, ended, said, passes):
  check = records.Check('e', 'ending', spec)
  checks.validate(check)
  assert checks.of_ending(check, _ending('x', ended=ended, **said)).passed is passes


def _changes():
  return [
    checks.Change('loan', 'L1', 'changed', 'due', '"a" -> "b"'),
    checks.Change('loan', 'L2', 'added', said='(id="L2")'),
    checks.Change('loan', 'L3', 'added'),
    checks.Change('item', 'I1', 'removed'),
  ]


@pytest.mark.parametrize(
  ('allowed', 'violations'),
  [
    ([], [0, 1, 2, 3]),
    ([{'table': 'loan'}], [3]),
    ([{'table': 'loan', 'change': 'added'}], [0, 3]),
    ([{'table': 'loan', 'change': 'added', 'most': 1}], [0, 2, 3]),
    ([{'table': 'loan', 'columns': ['due'], 'change': 'changed'}], [1, 2, 3]),
    ([{'table': 'loan', 'columns': ['state'], 'change': 'changed'}], [0, 1, 2, 3]),
    ([{'table': 'loan', 'keys': ['L3']}, {'table': 'item'}], [0, 1]),
  ],
)
def test_every_change_that_is_not_allowed_is_a_violation(allowed, violations):
  check = records.Check('u', 'unchanged', {'allowed': allowed})
  checks.validate(check)
  result, found = checks.of_changes(check, _changes())
  assert found == [_changes()[i] for i in violations]
  assert result.passed is (not violations)
  assert all(str(change) in result.detail for change in found)


def test_changes_are_said_in_words():
  assert list(map(str, _changes()[:2])) == [
    'loan/L1: due "a" -> "b"',
    'loan/L2: added (id="L2")',
  ]


@pytest.mark.parametrize(
  ('kind', 'spec', 'words'),
  [
    ('state', {'query': 'select 1'}, 'expected_value'),
    ('state', {'query': 1, 'expected_value': 1}, 'query has the wrong type'),
    ('state', {'query': 'x', 'expected_value': 1, 'comparison_type': 'is'}, 'equals'),
    ('state', {'query': 'x', 'expected_value': 1, 'colour': 1}, 'no field'),
    ('calls', {}, 'selected_tools'),
    ('calls', {'selected_tools': [], 'minimum_tool_calls': True}, 'wrong type'),
    ('unchanged', {'allowed': ['loan']}, 'table'),
    ('unchanged', {'allowed': [{'table': 'x', 'change': 'new'}]}, 'removed'),
    ('unchanged', {'allowed': [{'table': 'x', 'rows': 1}]}, 'no field'),
    ('ending', {'ended': 'environment'}, 'finish'),
    ('ending', {'ended': 'refuse', 'rule': 'late'}, 'wrong type'),
    ('response', {'sql_query': 'select 1'}, 'comparison_prompt'),
  ],
)
def test_a_malformed_spec_is_named(kind, spec, words):
  with pytest.raises(ValueError, match=words) as error:
    checks.validate(records.Check('one', kind, spec))
  assert "'one'" in str(error.value)


def test_an_unknown_verifier_is_named():
  with pytest.raises(ValueError, match='database_state, tool_execution'):
    checks.from_published({'verifier_type': 'state', 'validation_config': {}})


def test_a_task_that_cannot_be_done_needs_a_check_of_its_ending():
  doing_nothing = records.Check('n', 'unchanged', {'allowed': []})
  world = records.World('w', {}, checks=(doing_nothing,), feasible=False)
  with pytest.raises(ValueError, match='ending'):
    checks.validate_world(world)


def test_the_pass_fraction_leaves_out_what_held_before():
  results = [
    records.CheckResult('a', 'state', True, vacuous=True),
    records.CheckResult('b', 'state', True),
    records.CheckResult('c', 'ending', False),
    records.CheckResult('d', 'unchanged', True, vacuous=True),
  ]
  verdict = records.Verdict(tuple(results))
  assert verdict.pass_fraction == 0.5 and not verdict.success
  assert records.Verdict(()).pass_fraction is None
  assert not records.Verdict(()).success, 'no check is no success'
