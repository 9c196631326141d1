"""Tools that give the facts of experiments/own_tasks in another way than the search.

They examine a planner with tools that its training did not show:

  python -m agentflow_jax.evaluate --config=experiments/own_tasks.py \\
      --planner=runs/own_tasks_warm_start/planner --workdir=runs/unseen \\
      --config.agent.tools.enabled=python --config.agent.tools.corpus= \\
      --config.agent.tools.own=experiments/own_facts.py:country_record

or, with two arguments that the planner writes itself, the last two lines as

      --config.agent.tools.own=experiments/own_facts.py:country_fact \\
      --config.agent.executor.backend=fields

docs/environments.md has what came of it.
"""

import functools
import pathlib
import re
from typing import Literal

_ARTICLES = pathlib.Path(__file__).parent / 'own_tasks' / 'articles'
Property = Literal[
  'continent', 'capital', 'currency', 'area', 'population', 'calling code', 'web domain'
]
# Property -> sentence of the articles.
_SENTENCES: dict[str, str] = {
  'continent': r'(?P<country>.+) lies in (?P<value>.+)\.',
  'capital': r'The seat of government of (?P<country>.+?) is (?P<value>.+)\.',
  'currency': r'Shops in (?P<country>.+?) take the (?P<value>.+)\.',
  'area': r'The land of (?P<country>.+) covers (?P<value>\d+) square kilometres\.',
  'population': r'(?P<country>.+) has (?P<value>\d+) inhabitants\.',
  'calling code': r'To call (?P<country>.+) from abroad, dial (?P<value>.+) first\.',
  'web domain': r'Internet addresses in (?P<country>.+) end in (?P<value>.+)\.',
}


@functools.cache
def _countries() -> dict[str, dict[str, str]]:
  """Returns the properties of each country, by its name in small letters."""
  found: dict[str, dict[str, str]] = {}
  for path in sorted(_ARTICLES.glob('*.txt')):
    for sentence in path.read_text(encoding='utf-8').split('\n\n'):
      for name, pattern in _SENTENCES.items():
        if match := re.fullmatch(pattern, sentence.strip()):
          country = found.setdefault(match['country'].casefold(), {})
          country[name] = match['value']
          break
  return found


def _facts_of(country: str) -> dict[str, str]:
  """Returns the properties of a country; its name has to be written in full."""
  known = _countries()
  if country.strip().casefold() not in known:
    raise ValueError(f'no country is called {country.strip()!r}')  # For the model.
  return known[country.strip().casefold()]


def country_record(country: str) -> str:
  """Opens the record of one country. It takes the name of the country, and no more.

  Args:
    country: name of the country alone, such as Chad.
  """
  return ', '.join(_facts_of(country).values())


def country_fact(country: str, property: Property) -> str:
  """Gives one property of a country: country=Chad; property=population.

  Args:
    country: name of the country alone.
    property: the property to give.
  """
  return _facts_of(country)[property]
