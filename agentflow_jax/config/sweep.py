"""Lists of overrides, for a config file's get_sweep().

A run of a sweep is a dict of `--config.` flags without that prefix, such as
{'seed': '1', 'flow_grpo.kl_coef': '0'}; the functions here make and combine lists
of them.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Runs = list[dict[str, str]]


def grid(choices: Mapping[str, Sequence[Any]]) -> Runs:
  """Returns every combination; the last field varies fastest."""
  return [
    dict(zip(choices, map(_text, values)))
    for values in itertools.product(*choices.values())
  ]


def zipped(choices: Mapping[str, Sequence[Any]]) -> Runs:
  """Returns the first value of every field together, then the second, ...

  Raises:
    ValueError: the fields do not have equally many.
  """
  if len({len(values) for values in choices.values()}) > 1:
    raise ValueError(
      'zipped fields need equally many values: '
      + str({name: len(values) for name, values in choices.items()})
    )
  return [dict(zip(choices, map(_text, values))) for values in zip(*choices.values())]


def chain(*sweeps: Runs) -> Runs:
  """Returns the runs of all, without those that came before."""
  runs = []
  for run in itertools.chain(*sweeps):
    if run not in runs:
      runs.append(run)
  return runs


def product(*sweeps: Runs) -> Runs:
  """Returns a run of every sweep joined with one of every other.

  Raises:
    ValueError: two sweeps set the same field.
  """
  runs = []
  for parts in itertools.product(*sweeps):
    joined: dict[str, str] = {}
    for part in parts:
      if twice := sorted(joined.keys() & part.keys()):
        raise ValueError(f'two sweeps set {", ".join(twice)}')
      joined |= part
    runs.append(joined)
  return runs


def sample(
  space: Mapping[str, Sequence[Any] | Callable[[random.Random], Any]],
  count: int,
  seed: int = 0,
) -> Runs:
  """Returns runs with fields drawn at random; the same ones for a seed.

  Args:
    space: field -> values to choose from, or a function that draws one.
    count: number of runs.
    seed: seed of the draws.
  """
  rng = random.Random(seed)
  draw = lambda s: s(rng) if callable(s) else rng.choice(s)
  return [
    {name: _text(draw(values)) for name, values in space.items()} for _ in range(count)
  ]


def _text(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, (tuple, list)):
    return ','.join(map(_text, value))
  return str(value)
