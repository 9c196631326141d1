"""The policy of a desk: ten rules, of which six are in force in a world.

A world gives each rule in force its parameters: {"limit": {"loans": 3}, ...}. Where a
task asks for what a rule forbids, the right end is `refuse` with the rule's name and
the key of the row that the rule is about.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents.environments.desk import actions, policy_guide, schema

# Rule of an ending where the words of a task fit two rows.
AMBIGUOUS = 'ambiguous'


@dataclasses.dataclass(frozen=True)
class Rule:
  """One rule.

  Attributes:
    name: name that `refuse` takes.
    about: table of the row that the rule is about; '' where it forbids nothing.
    line: its text in a short policy, with its parameters in braces.
    parameters: names of its parameters.
  """

  name: str
  about: str
  line: str
  parameters: tuple[str, ...] = ()


RULES: Mapping[str, Rule] = {
  rule.name: rule
  for rule in (
    Rule('limit', 'person', 'at most {loans} open loans.', ('loans',)),
    Rule('late', 'person', 'no loan or extension with a late loan.'),
    Rule('approval', 'item', "high value needs the {role}'s approval.", ('role',)),
    Rule(
      'service',
      'item',
      'within {days} days, no loan or move; returned, open repair.',
      ('days',),
    ),
    Rule('training', 'person', '{category} needs training.', ('category',)),
    Rule('visitor', 'person', 'visitors borrow at most {days} days.', ('days',)),
    Rule('extension', 'loan', 'at most {times} extensions.', ('times',)),
    Rule('home', 'item', '{site} lends and moves within its unit.', ('site',)),
    Rule('test', 'repair', 'only tested repairs are closed.'),
    Rule('notice', '', 'after {event}, notify the {role}.', ('event', 'role')),
  )
}
# Values of the rule notice's parameter event, and how texts say them.
EVENTS = {'moved': 'a move', 'opened': 'opening a repair', 'closed': 'closing a repair'}
_SHORT_END = (
  'Forbidden: refuse(rule, id). Two match: refuse(ambiguous, id). Do other goals'
  ' first. Swaps are one goal.'
)
_DEFINITIONS = (
  'Definitions. A loan is late when it was due before today. A training is valid'
  ' up to and with the day on which it expires. High value means worth'
  f' {schema.HIGH_VALUE} or more. The unit of an item is the one that runs its site;'
  ' head and steward are those of that unit; an approval counts for one person and'
  ' one item. Service within a number of'
  ' days includes the last of them, and service that is overdue. "At most" is what'
  ' holds afterwards.'
)


def render(
  rules: Mapping[str, Mapping[str, Any]], tier: actions.Tier = 'easy', date: str = ''
) -> str:
  """Returns the text of a policy.

  Args:
    rules: parameters of the rules in force, by the rules' names.
    tier: 'easy' for less than 70 words, 'plain' with definitions, 'long' for the
      whole guide of the desk.
    date: date of the world, which the tiers with dates show.

  Raises:
    ValueError: there is no such rule, or a rule's parameters are not those it has.
  """
  for name, said in rules.items():
    if name not in RULES:
      raise ValueError(f'there is no rule {name!r}; there are {", ".join(RULES)}')
    if set(said) != set(RULES[name].parameters):
      raise ValueError(
        f'the rule {name!r} has the parameters {RULES[name].parameters}: {dict(said)!r}'
      )
  in_force = [r for r in RULES.values() if r.name in rules]
  if tier == 'long':
    return policy_guide.render({r.name: _worded(rules[r.name]) for r in in_force}, date)
  lines = []
  for rule in in_force:
    about = f' ({rule.about})' if rule.about else ''
    said = rule.line.format(**_worded(rules[rule.name]))
    lines.append(f'{rule.name}{about}: {said}')
  lines.append(_SHORT_END)
  if tier == 'plain':
    lines += [_DEFINITIONS, f'Today is {date}.']
  return '\n'.join(lines)


def _worded(said: Mapping[str, Any]) -> dict[str, Any]:
  """Returns parameters as texts say them."""
  return {k: EVENTS[v] if k == 'event' else v for k, v in said.items()}
