"""Benchmarks under the rules that score them: golds against golds.

Here because it needs both data and rewards, which do not know each other.
"""

import asyncio
import pathlib
import random
import re

import pytest

from agentflow_jax.agents.rewards import registry
from agentflow_jax.data import benchmarks

# Beside the repository where the project is developed; not part of it.
_SHARED = pathlib.Path(__file__).parents[3] / 'shared/data/benchmarks'


def _says_the_same(name, gold, other):
  """Whether two golds are one answer, by a definition apart from the rules'."""
  if name == 'gameof24':  # What is given is what counts, in any order.
    return sorted(re.findall(r'\d+', gold)) == sorted(re.findall(r'\d+', other))
  if re.fullmatch(r'-?\d+', gold) and re.fullmatch(r'-?\d+', other):
    return int(gold) == int(other)
  if re.fullmatch(r'\d{4}', gold):  # A year, and a month or a day of it.
    days = rf'(\w+ \d+, |(\d+ )?[A-Z][a-z]+ )?{gold}'
    return re.fullmatch(days, other) is not None
  plain, other_plain = (
    ''.join(c for c in said.casefold() if c.isalnum()) for said in (gold, other)
  )
  return plain == other_plain


@pytest.mark.parametrize(
  'name',
  ['2wiki', 'aime24', 'amc23', 'bamboogle', 'gameof24', 'hotpotqa', 'medqa', 'musique'],
)
def test_a_gold_scores_under_its_own_rule_and_others_only_if_the_same(name):
  if not (_SHARED / name).exists():
    pytest.skip(f'no benchmark data at {_SHARED.parent.name}/{name}')
  tasks, _ = benchmarks.read(str(_SHARED / name / 'data.json'), name)
  rng = random.Random(0)

  async def run():
    reward = registry.get(benchmarks.REWARDS[name])
    missed = [(t.id, a) for t in tasks for a in t.answers if await reward(t, a) != 1]
    disputed = []
    for task in tasks:
      # All of 200 tasks or fewer, or neighbouring years might never meet.
      for other in rng.sample(tasks, len(tasks) if len(tasks) <= 200 else 20):
        for said in other.answers:
          same = any(_says_the_same(name, g, said) for g in task.answers)
          if await reward(task, said) != same:
            disputed.append((task.id, task.answers, said))
    await reward.aclose()
    return missed, disputed

  assert asyncio.run(run()) == ([], [])
