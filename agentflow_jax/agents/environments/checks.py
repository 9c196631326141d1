"""Checks of a world's end: what they need, and what they come to.

The fields of a check's spec, by its kind:

  state      query, expected_value, comparison_type ('equals', 'greater_than',
             'less_than' or 'contains'), as EnterpriseOps-Gym publishes them
             (arXiv 2603.13594): the query's result is [] without rows, the value
             where there is one row of one column, the row as an object where there
             is one row, and a list of objects otherwise; 'equals' is Python's ==,
             'contains' asks whether the expected text is part of str(result), and
             what cannot be compared fails.
  calls      selected_tools, all of which have to be called, and minimum_tool_calls;
             calls that failed count, as they do where this was published.
  response   sql_query, whose result a judge sees beside the answer,
             comparison_prompt, and minimum_comparison_value (of 1 to 10).
             These two may name the server whose database is asked, gym_name.
  unchanged  allowed: list of {"table"; and optionally "change": 'added', 'removed'
             or 'changed', "keys": list of keys, "columns": list of columns, "most":
             largest number of such changes}. Every other change is a violation.
             The first rule that fits a change is used up by it.
  ending     ended ('finish' or 'refuse'); and optionally "rule" and "about", lists
             of the values that the ending call's arguments of these names may have.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentflow_jax import records

_COMPARISONS = {
  'equals': lambda actual, expected: actual == expected,
  'greater_than': lambda actual, expected: actual > expected,
  'less_than': lambda actual, expected: actual < expected,
  'contains': lambda actual, expected: expected in str(actual),
}
_PUBLISHED: Mapping[str, records.CheckKind] = {
  'database_state': 'state',
  'tool_execution': 'calls',
  'response_check': 'response',
}
# Kind -> fields that must be there, with their types, and those that may be.
_NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
  'state': {'query': str, 'expected_value': object},
  'calls': {'selected_tools': list},
  'response': {'sql_query': str, 'comparison_prompt': str},
  'unchanged': {'allowed': list},
  'ending': {'ended': str},
  'reward': {},
}
_OPTIONAL: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
  'state': {'comparison_type': str, 'gym_name': str},
  'calls': {'minimum_tool_calls': int, 'gym_name': str},
  'response': {'minimum_comparison_value': (int, float), 'gym_name': str},
  'unchanged': {},
  'ending': {'rule': list, 'about': list},
  'reward': {'at_least': (int, float)},
}
_ALLOWED = {'table': str, 'change': str, 'keys': list, 'columns': list, 'most': int}
_MINIMUM_RATING = 7
_SHOWN = 300


@dataclasses.dataclass(frozen=True, order=True)
class Change:
  """One difference between the state at the start and at the end.

  Attributes:
    table: table of the row.
    key: primary key of the row, as text.
    kind: 'added', 'removed' or 'changed'.
    column: column that changed; '' where a whole row was added or removed.
    said: new value of the row or the column, in words.
  """

  table: str
  key: str
  kind: Literal['added', 'removed', 'changed']
  column: str = ''
  said: str = ''

  def __str__(self) -> str:
    what = f'{self.column} {self.said}' if self.column else f'{self.kind} {self.said}'
    return f'{self.table}/{self.key}: {what.strip()}'


def from_published(said: Mapping[str, Any]) -> records.Check:
  """Returns the check of a verifier as EnterpriseOps-Gym publishes it.

  Args:
    said: JSON object with verifier_type, validation_config and a name.

  Raises:
    ValueError: the type is unknown, or the config does not fit it.
  """
  kind = _PUBLISHED.get(said.get('verifier_type', ''))
  if kind is None:
    raise ValueError(
      f'verifier_type {said.get("verifier_type")!r} is none of {", ".join(_PUBLISHED)}'
    )
  config = dict(said.get('validation_config') or {})
  allowed = _NEEDED[kind].keys() | _OPTIONAL[kind].keys()
  check = records.Check(
    str(said.get('name', kind)), kind, {k: v for k, v in config.items() if k in allowed}
  )
  validate(check)
  return check


def validate(check: records.Check) -> None:
  """Raises ValueError, naming the check and the field, where a spec is malformed."""
  where = f'check {check.name!r} of kind {check.kind!r}'
  needed, optional = _NEEDED[check.kind], _OPTIONAL[check.kind]
  for name in needed:
    if name not in check.spec:
      raise ValueError(f'{where} needs {name!r}')
  _check_types(check.spec, {**needed, **optional}, where)
  compared = check.spec.get('comparison_type', 'equals')
  if compared not in _COMPARISONS:
    raise ValueError(
      f'{where}: comparison_type must be one of {", ".join(_COMPARISONS)}: {compared!r}'
    )
  if check.kind == 'ending' and check.spec['ended'] not in ('finish', 'refuse'):
    raise ValueError(f"{where}: ended must be 'finish' or 'refuse'")
  for rule in check.spec.get('allowed', ()):
    if not isinstance(rule, Mapping) or 'table' not in rule:
      raise ValueError(f'{where}: each of "allowed" is an object with a "table"')
    _check_types(rule, _ALLOWED, f'{where}: allowed')
    for name in ('keys', 'columns'):
      if not all(isinstance(value, str) for value in rule.get(name, ())):
        raise ValueError(f'{where}: allowed: {name} must be texts: {rule[name]!r}')
    if rule.get('change', 'added') not in ('added', 'removed', 'changed'):
      raise ValueError(
        f"{where}: allowed: change must be 'added', 'removed' or 'changed'"
      )


def _check_types(said, types, where) -> None:
  for name, value in said.items():
    if name not in types:
      raise ValueError(f'{where} has no field {name!r}; it has {", ".join(types)}')
    kind = types[name]
    if not isinstance(value, kind) or (kind is not object and isinstance(value, bool)):
      raise ValueError(f'{where}: {name} has the wrong type: {value!r}')


def validate_world(world: records.World) -> None:
  """Raises ValueError where the checks of a world cannot tell right from wrong."""
  for check in world.checks:
    validate(check)
  if world.feasible is False and not any(c.kind == 'ending' for c in world.checks):
    raise ValueError(
      'a task that cannot be carried out needs a check of kind "ending":'
      ' doing nothing would pass otherwise'
    )


def result_value(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
  """Returns the result of a query as a check compares it."""
  return value_of_rows([dict(zip(names, row)) for row in rows])


def value_of_rows(rows: list[Any]) -> Any:
  """Returns what rows are compared as: one row as itself, or as its one column."""
  if len(rows) != 1:
    return rows
  row = rows[0]
  if isinstance(row, Mapping) and len(row) == 1:
    return next(iter(row.values()))
  return row


def compared(check: records.Check, actual: Any) -> records.CheckResult:
  """Compares the result of the query of a 'state' check."""
  expected = check.spec['expected_value']
  kind = check.spec.get('comparison_type', 'equals')
  try:
    passed = bool(_COMPARISONS[kind](actual, expected))
  except TypeError as e:  # Published so: what cannot be compared fails.
    return failed(check, f'{kind}: {e}')
  return records.CheckResult(
    check.name,
    check.kind,
    passed,
    f'{str(actual)[:_SHOWN]} {kind} {str(expected)[:_SHOWN]}',
  )


def failed(check: records.Check, why: str) -> records.CheckResult:
  """Returns the result of a check whose condition cannot even be read."""
  return records.CheckResult(check.name, check.kind, False, why[:_SHOWN])


def of_calls(check: records.Check, ending: records.Ending) -> records.CheckResult:
  """Says whether the tools of a 'calls' check were called often enough."""
  called = [call.tool for call, _ in ending.calls]
  missing = [t for t in check.spec['selected_tools'] if t not in called]
  least = check.spec.get('minimum_tool_calls', 1)
  detail = f'{len(called)} calls'
  if missing:
    detail = f'{detail}; not called: {", ".join(map(str, missing))}'
  return records.CheckResult(
    check.name, check.kind, not missing and len(called) >= least, detail
  )


def of_ending(check: records.Check, ending: records.Ending) -> records.CheckResult:
  """Says whether an episode ended as an 'ending' check asks for."""
  spec = check.spec
  if ending.ended != spec['ended']:
    return failed(
      check, f'ended by {ending.ended!r}' if ending.ended else 'it did not end'
    )
  done = [call for call, result in ending.calls if result.error is None]
  said = done[-1].arguments if done else {}
  for name in ('rule', 'about'):
    if name in spec and said.get(name) not in spec[name]:
      return failed(check, f'{name} {said.get(name)!r}')
  return records.CheckResult(check.name, check.kind, True, f'ended by {ending.ended}')


def of_changes(
  check: records.Check, changes: Sequence[Change]
) -> tuple[records.CheckResult, list[Change]]:
  """Says whether an 'unchanged' check allows all changes, and which it does not."""
  used: collections.Counter[int] = collections.Counter()
  violations = []
  for change in changes:
    for i, rule in enumerate(check.spec['allowed']):
      if _allows(rule, change) and used[i] < rule.get('most', len(changes)):
        used[i] += 1
        break
    else:
      violations.append(change)
  detail = '; '.join(map(str, violations)) or f'{len(changes)} changes, all allowed'
  result = records.CheckResult(check.name, check.kind, not violations, detail[:_SHOWN])
  return result, violations


def _allows(rule: Mapping[str, Any], change: Change) -> bool:
  return (
    rule['table'] == change.table
    and rule.get('change', change.kind) == change.kind
    and change.key in rule.get('keys', [change.key])
    and (not change.column or change.column in rule.get('columns', [change.column]))
  )


def minimum_rating(check: records.Check) -> float:
  """Returns the least rating of 1 to 10 with which a 'response' check passes."""
  return check.spec.get('minimum_comparison_value', _MINIMUM_RATING)
