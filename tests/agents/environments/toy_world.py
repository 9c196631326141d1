"""A small world for tests: a shelf of things that can be moved, sold and counted."""

import json

from agentflow_jax import records
from agentflow_jax.agents.environments.sqlite import database, environment, seeds
from agentflow_jax.agents.tools import base

SCHEMA = """
create table shelf (id text primary key, name text not null);
create table thing (
  id text primary key, name text not null, shelf text not null references shelf (id),
  price integer not null check (price >= 0)
);
create table sale (id integer primary key, thing text not null, price integer not null);
create table remark (said text not null);
"""
ROWS = {
  'shelf': [['S1', 'upper'], ['S2', 'lower']],
  'thing': [
    ['T1', 'red cup', 'S1', 5],
    ['T2', 'blue cup', 'S1', 7],
    ['T3', 'pot', 'S2', 20],
  ],
}
SEED = seeds.Seed.of(SCHEMA, ROWS)


def find(db: database.Database, name: str) -> str:
  """Finds things by their name.

  Args:
    name: whole name of the thing.
  """
  found = db.rows('select id, shelf from thing where name = ? order by id', name)
  return '; '.join(f'{i} on {shelf}' for i, shelf in found) or 'nothing'


def move(db: database.Database, thing: str, shelf: str) -> str:
  """Moves a thing to a shelf.

  Args:
    thing: id of the thing.
    shelf: id of the shelf.
  """
  db.rows('insert into remark values (?)', f'move {thing}')
  if not db.row('select 1 from thing where id = ?', thing):
    raise base.BadArguments(f'there is no thing {thing!r}: find it by its name')
  db.rows('update thing set shelf = ? where id = ?', shelf, thing)
  return f'{thing} is on {shelf} now'


def sell(db: database.Database, thing: str) -> str:
  """Sells a thing.

  Args:
    thing: id of the thing.
  """
  price = db.value('select price from thing where id = ?', thing)
  db.rows(
    'insert into sale select coalesce(max(id), 0) + 1, ?, ? from sale', thing, price
  )
  return f'sold for {price}'


def finish(db: database.Database, summary: str) -> str:
  """Ends the task.

  Args:
    summary: what was done.
  """
  del db
  return summary


def refuse(db: database.Database, rule: str, about: str) -> str:
  """Declines the task.

  Args:
    rule: rule that forbids it.
    about: id of what the rule is about.
  """
  del db
  return f'{rule}: {about}'


ACTIONS = (
  environment.Action(find),
  environment.Action(move),
  environment.Action(sell),
  environment.Action(finish, 'finish'),
  environment.Action(refuse, 'refuse'),
)


def make(**fields) -> environment.SqliteEnvironment:
  """Returns the environment; `fields` replace its own."""
  return environment.SqliteEnvironment(
    **(
      {
        'name': 'toy',
        'version': '1',
        'actions': ACTIONS,
        'seed_of': {'toy': SEED}.__getitem__,
        'names_of': lambda seed: tuple(row[1] for row in seed.rows['thing']),
        'keys': r'[ST]\d+',
      }
      | fields
    )
  )


def state(name, query, expected, comparison='equals') -> records.Check:
  """Returns a check of the final state."""
  return records.Check(
    name,
    'state',
    {'query': query, 'expected_value': expected, 'comparison_type': comparison},
  )


MOVED = state('moved', "select shelf from thing where id = 'T1'", 'S2')
ONLY = records.Check(
  'only',
  'unchanged',
  {
    'allowed': [
      {'table': 'thing', 'change': 'changed', 'keys': ['T1'], 'columns': ['shelf']},
      {'table': 'remark', 'change': 'added'},
    ]
  },
)
FINISHED = records.Check('finished', 'ending', {'ended': 'finish'})


def task(checks=(MOVED, ONLY, FINISHED), task_id='t', **fields) -> records.Task:
  """Returns the task of moving the red cup to the lower shelf."""
  world = records.World(
    **(
      {
        'environment': 'toy',
        'state': {'seed': 'toy', 'sha256': SEED.sha256},
        'policy': 'Cups may be moved.',
        'checks': tuple(checks),
        'feasible': True,
        'plan': 'find the red cup, move it, finish',
      }
      | fields
    )
  )
  return records.Task(task_id, 'Move the red cup to S2.', (), 'checks', world=world)


def plan(tool: str, **arguments: str) -> str:
  """Returns a planner's response that calls a tool."""
  context = '; '.join(f'{name}={value}' for name, value in arguments.items())
  return f'Sub-Goal: do\nContext: {context}\nTool Name: {tool}'


def key(rollout: int = 0, query: str = 't') -> records.RequestKey:
  """Returns the key of a rollout."""
  return records.RequestKey(0, records.Purpose.TRAIN, 0, query, rollout)


def rows_of(seed: seeds.Seed) -> str:
  """Returns a seed as the text of its file."""
  return json.dumps({'schema': seed.schema, 'rows': seed.rows})
