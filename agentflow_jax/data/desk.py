"""The desk: tasks in worlds of equipment, loans and repairs, made by a program.

Schema, policy texts and digests belong to the environment of the desk, which this
package does not import: the caller gives them as `Parts`.
"""

import contextlib
import dataclasses
import json
import os
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.data import desk_goals, desk_tasks, desk_worlds
from agentflow_jax.files import writing

SPLITS = tuple(desk_worlds.WORLDS)
# Version of the worlds and the tasks.
VERSION = '3'
_DONE = 'desk.json'

Rows = Mapping[str, Sequence[Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the environment of the desk gives to its data.

  Attributes:
    schema: SQL of the tables.
    digest: function from rows by table to the SHA-256 of a seed of these rows.
    policy: function from the parameters of the rules in force, a tier and the
      world's date to the text of the policy.
  """

  schema: str
  digest: Callable[[Rows], str]
  policy: Callable[[Mapping[str, Mapping[str, Any]], desk_goals.Tier, str], str]


@dataclasses.dataclass(frozen=True)
class Size:
  """Numbers of worlds and tasks of a split; None for the split's own."""

  worlds: int | None = None
  tasks: int | None = None


def generate(
  split: str, parts: Parts, tier: desk_goals.Tier = 'easy', size: Size = Size()
) -> tuple[dict[str, Rows], list[records.Task]]:
  """Returns the worlds of a split, as rows by name and table, and its tasks.

  Args:
    split: 'train', 'validation' or 'test'.
    parts: parts that the environment gives.
    tier: tier of the policy texts and of the solutions.
    size: numbers of worlds and tasks.
  """
  columns = columns_of(parts.schema)
  worlds = desk_worlds.generate(split, size.worlds)
  rows: dict[str, Rows] = {w.name: desk_worlds.rows_of(w, columns) for w in worlds}
  drafts = desk_tasks.generate(split, worlds, size.tasks, tier)
  tasks = desk_tasks.tasks(
    split,
    drafts,
    {name: parts.digest(found) for name, found in rows.items()},
    {w.name: parts.policy(w.rules, tier, w.date.isoformat()) for w in worlds},
  )
  return rows, list(tasks)


def write(
  directory: str | os.PathLike[str],
  parts: Parts,
  tier: desk_goals.Tier = 'easy',
  sizes: Mapping[str, Size] | None = None,
) -> epath.Path:
  """Writes worlds and tasks of all splits below a directory, once.

  Args:
    directory: directory of the files; created where absent.
    parts: parts that the environment gives.
    tier: tier of the policy texts and of the solutions.
    sizes: numbers of worlds and tasks by split; None for the splits' own.

  Returns:
    The directory of the worlds, a file NAME.json for each.

  Raises:
    ValueError: the directory holds a data set of another tier or version.
  """
  root = epath.Path(directory)
  said = {
    'version': VERSION,
    'tier': tier,
    'sizes': {
      split: dataclasses.astuple((sizes or {}).get(split, Size())) for split in SPLITS
    },
  }
  said = json.loads(json.dumps(said))
  if (root / _DONE).exists():
    found = json.loads((root / _DONE).read_text())
    if found != said:
      raise ValueError(
        f'{root} holds another data set of the desk, {found}: give another'
        f' directory, or remove it, to write {said}'
      )
    return root / 'worlds'
  (root / 'worlds').mkdir(parents=True, exist_ok=True)
  for split in SPLITS:
    worlds, tasks = generate(split, parts, tier, (sizes or {}).get(split, Size()))
    for name, rows in worlds.items():
      text = json.dumps({'schema': parts.schema, 'rows': rows})
      writing.write_whole(root / 'worlds' / f'{name}.json', text)
    policies = {t.its_world.state['seed']: t.its_world.policy for t in tasks}
    writing.write_whole(root / f'{split}_policies.json', json.dumps(policies))
    lines = ''.join(json.dumps(_said(task)) + '\n' for task in tasks)
    writing.write_whole(root / f'{split}.jsonl', lines)
  writing.write_whole(root / _DONE, json.dumps(said))
  return root / 'worlds'


def load(directory: str | os.PathLike[str], split: str) -> list[records.Task]:
  """Reads the tasks of a split that `write` wrote, in the order of their ids.

  Args:
    directory: directory as given to `write`.
    split: 'train', 'validation' or 'test'.
  """
  root = epath.Path(directory)
  policies = json.loads((root / f'{split}_policies.json').read_text())
  lines = (root / f'{split}.jsonl').read_text().splitlines()
  return [_task(json.loads(line), policies) for line in lines]


def narrowed(
  task: records.Task, tools: Sequence[str], distractors: int
) -> records.Task:
  """Returns a task that shows the tools it needs, and some others.

  The endings and the tools of the forbidden way are among those it needs.

  Args:
    task: task of this data set.
    tools: names of all tools, in the order in which they are shown.
    distractors: number of other tools, which work as usual.
  """
  needed = {'finish', 'refuse'}
  for tag in ('solution', 'tempting'):
    needed |= {c['tool'] for c in json.loads(task.tags.get(tag, '[]'))}
  others = [name for name in tools if name not in needed]
  rng = random.Random(f'desk/distractors/{task.id}')
  shown = needed.union(rng.sample(others, min(distractors, len(others))))
  return dataclasses.replace(
    task,
    world=dataclasses.replace(
      task.its_world, tools=tuple(name for name in tools if name in shown)
    ),
  )


def columns_of(schema: str) -> dict[str, tuple[str, ...]]:
  """Returns the columns of the tables of a schema, in their order."""
  with contextlib.closing(sqlite3.connect(':memory:')) as connection:
    connection.executescript(schema)
    tables = connection.execute(
      "select name from sqlite_master where type = 'table' order by name"
    ).fetchall()
    return {
      table: tuple(
        column
        for (column,) in connection.execute(
          'select name from pragma_table_info(?) order by cid', (table,)
        )
      )
      for (table,) in tables
    }


def _said(task: records.Task) -> dict[str, Any]:
  """Returns a task as an object of JSON; the policy is written once a world."""
  said = dataclasses.asdict(task)
  del said['world']['policy']
  return said


def _task(said: Mapping[str, Any], policies: Mapping[str, str]) -> records.Task:
  """Returns the task that `_said` made."""
  world = said['world'] | {'policy': policies[said['world']['state']['seed']]}
  return records.Task(
    **{**said, 'answers': tuple(said['answers']), 'world': records.World.of(world)}
  )
