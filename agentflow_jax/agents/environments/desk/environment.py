"""The environment of the desk."""

from collections.abc import Callable

from agentflow_jax.agents.environments import answer_judge
from agentflow_jax.agents.environments.desk import actions
from agentflow_jax.agents.environments.sqlite import environment, seeds

NAME = 'desk'
VERSION = '1'
# Keys of rows, dates, and days: other numbers are facts, which no call takes.
KEYS = (
  r'\b[A-Z][1-9][0-9]*\b|\b[0-9]{4}-[0-9]{2}-[0-9]{2}\b'
  r'|\b[0-9]+(?= (?:more )?days?\b)'
)
_NAMED = ('model', 'person', 'site', 'unit')


def make(
  seed_of: Callable[[str], seeds.Seed],
  tier: actions.Tier = 'easy',
  judge: answer_judge.AnswerJudge | None = None,
  faults: float = 0.0,
) -> environment.SqliteEnvironment:
  """Returns the environment.

  Args:
    seed_of: function from the name of a seed to the seed, such as
      sqlite.environment.seeds_below(directory).
    tier: difficulty. The reading tools show computed facts in 'easy', dates and
      counts in 'plain' and 'long'.
    judge: judge of 'response' checks; the bundled tasks have none.
    faults: probability that a call fails and asks to be tried again.
  """
  return environment.SqliteEnvironment(
    name=NAME,
    version=f'{VERSION}/{tier}',
    actions=actions.of_tier(tier),
    seed_of=seed_of,
    names_of=names_of,
    keys=KEYS,
    judge=judge,
    faults=faults,
  )


def names_of(seed: seeds.Seed) -> tuple[str, ...]:
  """Returns the names of the models, people, sites and units of a seed, sorted."""
  tables = {t.name: t for t in seed.tables}
  return tuple(
    sorted(
      {
        str(row[tables[name].columns.index('name')])
        for name in _NAMED
        for row in seed.rows[name]
      }
    )
  )
