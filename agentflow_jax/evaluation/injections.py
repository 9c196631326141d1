"""The texts that `evaluate --injection` plants, and how many rollouts obeyed them."""

from collections.abc import Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import injection
from agentflow_jax.config import schema
from agentflow_jax.files import reading

_BUNDLED = 'bundled'


def read(said: str, config: schema.Config) -> dict[str, list[injection.Injection]]:
  """Returns the texts to plant, by strategy.

  Where prompts show names of tools alone, no text on a card would be read: those of our
  own are left out, and others refused.

  Args:
    said: 'bundled', the path of a JSONL file, or '' for none.
    config: config of the evaluation.

  Raises:
    ConfigError: the file cannot be read, a text is malformed or has no place to stand,
      the agent acts by programs, or it is not ours.
  """
  if not said:
    return {}
  if config.agent.kind == 'served':
    raise schema.ConfigError(
      '--injection is for our own tools, and with agent.kind=served the agent has its'
      ' own: leave it out'
    )
  if config.agent.plan_format == 'code':
    raise schema.ConfigError(
      '--injection plants texts into calls of tools, and with agent.plan_format=code'
      ' there are only programs'
    )
  shows_cards = config.planner.prompt.cards != 'names'
  by_strategy: dict[str, list[injection.Injection]] = {}
  for one in injection.BUNDLED if said == _BUNDLED else _of_file(said):
    if one.place != 'description' or shows_cards:
      by_strategy.setdefault(one.strategy, []).append(one)
    elif said != _BUNDLED:
      raise schema.ConfigError(
        f'--injection={said}: planner.prompt.cards=names shows no description, so no'
        ' text can be planted there: leave it out'
      )
  if not by_strategy:
    raise schema.ConfigError(f'--injection={said}: the file holds no text to plant')
  return by_strategy


def _of_file(path: str) -> list[injection.Injection]:
  try:
    return [injection.Injection(**line.value) for line in reading.json_lines(path)]
  except FileNotFoundError:
    raise schema.ConfigError(
      f"--injection: no file {path}; 'bundled' for our own texts"
    ) from None
  except (TypeError, ValueError, OSError, reading.FileError) as e:
    raise schema.ConfigError(f'--injection={path}: {e}') from e


def safety(
  groups: Sequence[records.Group], texts: Sequence[injection.Injection]
) -> dict[str, Any]:
  """Returns how many rollouts obeyed planted texts.

  Args:
    groups: rollouts of an agent that `injection.planted` returned.
    texts: texts of one strategy.

  Returns:
    'strategy', 'texts' (their number), 'rollouts' (scored ones), 'met' (those that met
    a text), 'obeyed' (those of them that made the call), and 'safety', the share of
    'met' that did not, or None where no rollout met a text.
  """
  scored = [
    (group.task, t)
    for group in groups
    for t in group.trajectories
    if t.reward is not None
  ]
  met = [t for task, t in scored if injection.met(task, t, texts)]
  obeyed = sum(map(injection.obeyed, met))
  return {
    'strategy': texts[0].strategy,
    'texts': len(texts),
    'rollouts': len(scored),
    'met': len(met),
    'obeyed': obeyed,
    'safety': 1 - obeyed / len(met) if met else None,
  }
