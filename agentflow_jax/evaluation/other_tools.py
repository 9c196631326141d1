"""Tools that training did not show: renamed ones, and ones that it never had.

`evaluate --tools` evaluates a planner once more with renamed tools, and
agent.withheld_tools says which tools it has never seen. One table compares them.
"""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentflow_jax.agents import renaming, rollout
from agentflow_jax.agents.environments.desk import new_names
from agentflow_jax.config import schema
from agentflow_jax.files import reading
from agentflow_jax.rollouts import evaluated_items, intervals

RENAMED = 'renamed'
ROWS = ('seen', RENAMED, 'unseen')
_FIELDS = {'name', 'purpose', 'arguments'}


def read(said: str, config: schema.Config) -> renaming.Names | None:
  """Returns the new names of tools; None for none.

  Args:
    said: 'renamed' for our own names of the desk's and of GeoHop's tools and made-up
      ones of others, the path of a JSON file, or '' for none.
    config: config of the evaluation.

  Raises:
    ConfigError: the file cannot be read, a name is malformed, the agent acts by
      programs, or it is not ours.
  """
  if not said:
    return None
  if config.agent.kind == 'served':
    raise schema.ConfigError(
      '--tools is for our own tools, and with agent.kind=served the agent has its'
      ' own: leave it out'
    )
  if config.agent.plan_format == 'code':
    raise schema.ConfigError(
      '--tools renames the tools that plans call, and with agent.plan_format=code'
      ' there are only programs'
    )
  if said == RENAMED:
    known = {**renaming.BUNDLED}
    if config.agent.environment.kind == 'desk':
      known |= new_names.NEW_NAMES
    return renaming.Names(known, all_of_them=True)
  try:
    value = reading.read_json(said)
    if not isinstance(value, dict) or not value:
      raise ValueError('it must be an object: {tool: {"name", "purpose", "arguments"}}')
    return renaming.Names({tool: _name(tool, new) for tool, new in value.items()})
  except FileNotFoundError:
    raise schema.ConfigError(
      f"--tools: no file {said}; 'renamed' for names of our own"
    ) from None
  except (ValueError, OSError, reading.FileError) as e:
    raise schema.ConfigError(f'--tools={said}: {e}') from e


def _name(tool: str, said: Any) -> renaming.NewName:
  """Returns the new name of a tool; raises ValueError."""
  if not isinstance(said, dict) or 'name' not in said or said.keys() - _FIELDS:
    raise ValueError(f'{tool!r} needs a "name", and may have "purpose", "arguments"')
  try:
    return renaming.NewName(**said)
  except ValueError as e:
    raise ValueError(f'{tool!r}: {e}') from e


def renamed(agent: rollout.Agent, names: renaming.Names, said: str) -> rollout.Agent:
  """Returns an agent with renamed tools.

  Args:
    agent: agent of the evaluation.
    names: new names.
    said: value of the flag.

  Raises:
    ConfigError: there is no tool, or no argument, of a name that is to be changed, or
      two would have one name.
  """
  cards = [tool.card for tool in agent.tools.values()]
  cards += agent.environment.cards if agent.environment else ()
  # An environment on a server may tell its tools only when an episode begins.
  is_known = agent.environment is None or agent.environment.cards
  try:
    if is_known and said != RENAMED:
      names.check(cards)
    return renaming.renamed(agent, names)
  except ValueError as e:
    raise schema.ConfigError(f'--tools={said}: {e}') from e


def rows(
  seen: Sequence[evaluated_items.Item],
  renamed_items: Sequence[evaluated_items.Item],
  withheld: Collection[str],
) -> dict[str, Any]:
  """Returns the table of seen, renamed and unseen tools.

  Args:
    seen: items of the evaluation with tools under their own names.
    renamed_items: items of the one with renamed tools; empty without one.
    withheld: ids of the tasks that need a tool which training did not show. They are
      the row 'unseen', and in no other.

  Returns:
    'seen', 'renamed' and 'unseen', as far as there are such items, each with 'tasks',
    'success' (mean over tasks of the share of successful rollouts, over scored ones),
    'ci_low', 'ci_high' (95% bootstrap over tasks), 'rollouts', 'unscored' and
    'first_causes'.
  """
  parts = {
    'seen': [i for i in seen if i.id not in withheld],
    RENAMED: [i for i in renamed_items if i.id not in withheld],
    'unseen': [i for i in seen if i.id in withheld],
  }
  return {name: _row(parts[name]) for name in ROWS if parts[name]}


def _row(items: Sequence[evaluated_items.Item]) -> dict[str, Any]:
  by_task = collections.defaultdict(list)
  for item in items:
    if item.reward is not None:
      by_task[item.id].append(item.first_cause is None)
  shares = [sum(found) / len(found) for found in by_task.values()]
  low, high = intervals.bootstrap_interval(shares, seed=0) if shares else (0.0, 1.0)
  causes = collections.Counter(i.first_cause for i in items if i.first_cause)
  return {
    'tasks': len(by_task),
    'success': sum(shares) / len(shares) if shares else None,
    'ci_low': low,
    'ci_high': high,
    'rollouts': len(items),
    'unscored': sum(item.reward is None for item in items),
    'first_causes': dict(causes.most_common()),
  }


def table(found: Mapping[str, Any]) -> list[str]:
  """Returns the lines of the table for people."""
  lines = [f'{"tools":10} {"tasks":>5} {"success":>8} {"95%":>16}   first causes']
  for name, row in found.items():
    success = '-' if row['success'] is None else f'{row["success"]:.1%}'
    interval = f'[{row["ci_low"]:.1%}, {row["ci_high"]:.1%}]'
    causes = ', '.join(f'{k} {n}' for k, n in row['first_causes'].items()) or '-'
    unscored = f'; {row["unscored"]} not scored' if row['unscored'] else ''
    lines.append(
      f'{name:10} {row["tasks"]:5} {success:>8} {interval:>16}   {causes}{unscored}'
    )
  return lines
