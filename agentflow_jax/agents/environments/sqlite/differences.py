"""What changed in a table between the start and the end of an episode."""

import collections
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from agentflow_jax.agents.environments import checks
from agentflow_jax.agents.environments.sqlite import seeds

_SHOWN = 200

# A row that is gone and the row in its place; None where there is none.
Pair = tuple[seeds.Row | None, seeds.Row | None]


def pairs(
  table: seeds.Table, before: Iterable[seeds.Row], after: Iterable[seeds.Row]
) -> list[Pair]:
  """Returns the rows of a table that differ.

  Rows are paired by their primary key. Without one, a row that changed is a row
  that was removed and one that was added.

  Args:
    table: table of the rows.
    before: rows at the start, in any order.
    after: rows at the end, in any order.
  """
  if not table.key:
    return _of_keyless(before, after)
  old, new = set(before), set(after)
  # SQLite allows null in most keys, and then any number of such rows. Most rows have no
  # null at all, which is quicker to find out than to take out their keys.
  without = [
    {r for r in rows if None in r and None in table.key_of(r)} for rows in (old, new)
  ]
  removed = table.by_key(old - new - without[0])
  added = table.by_key(new - old - without[1])
  found = [(removed.get(key), added.get(key)) for key in removed.keys() | added.keys()]
  if any(without):
    found += _of_keyless(
      *(
        [r for r in rows if r in part]
        for rows, part in ((before, without[0]), (after, without[1]))
      )
    )
  return found


def _of_keyless(before: Iterable[seeds.Row], after: Iterable[seeds.Row]) -> list[Pair]:
  gone = collections.Counter(before)
  gone.subtract(collections.Counter(after))
  return [
    (row, None) if times > 0 else (None, row)
    for row, times in gone.items()
    for _ in range(abs(times))
  ]


def in_words(table: seeds.Table, found: Iterable[Pair]) -> list[checks.Change]:
  """Returns differences as changes."""
  changes = []
  for old, new in found:
    row = new or old
    assert row is not None
    name = table.name_of(row)[:_SHOWN]
    if new is None:
      changes.append(checks.Change(table.name, name, 'removed'))
    elif old is None:
      said = ''
      if table.key:
        values = zip(table.columns, new)
        said = f'({", ".join(f"{c}={_shown(v)}" for c, v in values)})'[:_SHOWN]
      changes.append(checks.Change(table.name, name, 'added', said=said))
    else:
      changes += [
        checks.Change(
          table.name, name, 'changed', column, f'{_shown(a)} -> {_shown(b)}'
        )
        for column, a, b in zip(table.columns, old, new)
        if a != b
      ]
  return changes


def digest(seed: seeds.Seed, found: Sequence[tuple[str, Pair]]) -> str:
  """Returns the digest of a state by what of its seed is different there.

  Args:
    seed: state at the start.
    found: differing rows with the names of their tables, in any order.

  Returns:
    The seed's own digest where nothing is different.
  """
  if not found:
    return seed.sha256
  texts = sorted(json.dumps(one, default=_blob) for one in found)
  return hashlib.sha256('\n'.join([seed.sha256, *texts]).encode()).hexdigest()


def _blob(value: Any) -> Any:
  return {'blob': value.hex()}


def _shown(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False, default=bytes.hex)[:_SHOWN]
