"""Rollouts on disk: one immutable compressed file, one record a turn.

A file holds JSON lines: for each rollout a 'rollout' record and then its 'turn'
records, and an 'undelivered' record for each response that reached no agent. A
turn's prompt ids are written as a difference to the turn before: [how many leading
ids are the same, the rest], because a prompt repeats the one before it up to the
last memory entry. Where sampling truncated and that was
recorded, the sets are written as the size of each and the ids of all. Floats
are written so that they read back to the same bits.

Schema 2 has worlds, verdicts and the terms of scores; schema 1, which is read, too,
had 'reward_parts', terms of weight 1.
"""

import dataclasses
import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import zstandard
from etils import epath

from agentflow_jax import records
from agentflow_jax.files import old_names, reading, writing

SCHEMA = 2
_READ = (1, SCHEMA)


class RecordError(reading.FileError):
  """A rollout file that cannot be read; names the file."""


@dataclasses.dataclass(frozen=True)
class Recorded:
  """All that a file holds.

  Attributes:
    name: name of the file, for messages.
    header: first line of the file: its schema, and what `write` was given.
    groups: groups of rollouts.
    extras: (place of the group, place of the rollout in it) -> fields of its
      'rollout' record, those of the trajectory among them.
  """

  name: str
  header: Mapping[str, Any]
  groups: tuple[records.Group, ...]
  extras: Mapping[tuple[int, int], Mapping[str, Any]]


def write(
  path: epath.Path,
  groups: Sequence[records.Group],
  extras: Mapping[tuple[int, int], Mapping[str, Any]] | None = None,
  level: int = 3,
  header: Mapping[str, Any] | None = None,
) -> None:
  """Writes groups of rollouts, whole or not at all.

  Args:
    path: the file; a reader never sees half of it.
    groups: the rollouts.
    extras: (place of the group, rollout) -> fields added to its 'rollout'
      record (the advantage, and the turns' weights).
    level: level of zstd compression.
    header: fields added to the first line, about the step.
  """
  writing.write_whole(path, to_bytes(groups, extras, level, header))


def to_bytes(
  groups: Sequence[records.Group],
  extras: Mapping[tuple[int, int], Mapping[str, Any]] | None = None,
  level: int = 3,
  header: Mapping[str, Any] | None = None,
) -> bytes:
  """Returns what `write` writes."""
  lines: list[dict[str, Any]] = [{'schema': SCHEMA, **(header or {})}]
  for place, group in enumerate(groups):
    task = dataclasses.asdict(group.task)
    lines.append({'kind': 'group', 'task': _without(task, 'world')})
    for trajectory in group.trajectories:
      more = (extras or {}).get((place, trajectory.rollout), {})
      lines += _encode(trajectory, more)
  text = ''.join(
    json.dumps(l, ensure_ascii=False, separators=(',', ':')) + '\n' for l in lines
  )
  return zstandard.ZstdCompressor(level=level).compress(
    text.encode('utf-8', 'surrogatepass')
  )


def read(path: epath.Path) -> list[records.Group]:
  """Reads what `write` wrote.

  Raises:
    RecordError: cut off, of another schema, or not such a file.
  """
  return list(read_all(path).groups)


def read_all(path: epath.Path) -> Recorded:
  """Reads what `write` wrote, with its extras and its header.

  Raises:
    RecordError: cut off, of another schema, or not such a file.
  """
  with reading.boundary(path, RecordError):
    return _recorded(path.read_bytes(), str(path))


def from_bytes(data: bytes, name: str) -> list[records.Group]:
  """Returns what `to_bytes` was given.

  Raises:
    RecordError: cut off, of another schema, or not such bytes; gives the name.
  """
  return list(_recorded(data, name).groups)


def _recorded(data: bytes, name: str) -> Recorded:
  try:
    header, *lines = _lines(data, name)
    rows = _rows(lines)
    return Recorded(
      name=name,
      header=header,
      groups=tuple(
        records.Group(task, tuple(_trajectory(r) for r in rollouts))
        for task, rollouts in rows
      ),
      extras={
        (place, i): rollout['header']
        for place, (_, rollouts) in enumerate(rows)
        for i, rollout in enumerate(rollouts)
      },
    )
  except RecordError:
    raise
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
  ) as e:
    raise RecordError(f'{name} is not a whole rollout file: {e}') from e


def _lines(data: bytes, name: str) -> list[dict[str, Any]]:
  """Reads the records of a file, its header first."""
  try:
    data = zstandard.ZstdDecompressor().decompress(data)
    lines = [
      json.loads(l) for l in data.decode('utf-8', 'surrogatepass').split('\n') if l
    ]
    schema = lines[0].get('schema')
  except (
    zstandard.ZstdError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    ValueError,
  ) as e:
    raise RecordError(f'{name} is not a whole rollout file: {e}') from e
  if schema not in _READ:
    raise RecordError(f'{name} has schema {schema}, this reads {_READ}')
  return lines


def digest(path: epath.Path) -> str:
  """SHA-256 of a file's records without what the clock wrote."""
  lines = [
    json.dumps(_timeless(l), sort_keys=True)
    for l in _lines(path.read_bytes(), str(path))
  ]
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def _timeless(value: Any) -> Any:
  """A value without its fields of seconds."""
  if isinstance(value, dict):
    return {k: _timeless(v) for k, v in value.items() if not k.endswith('seconds')}
  if isinstance(value, (list, tuple)):
    return [_timeless(v) for v in value]
  return value


def _encode(trajectory, extras) -> Iterable[dict[str, Any]]:
  header = _plain(dataclasses.replace(trajectory, turns=(), undelivered=()))
  del header['turns'], header['undelivered']
  header = _without(header, 'score', 'verdict', 'digest', 'briefing')
  if 'verdict' in header and header['verdict']['reward'] is None:
    del header['verdict']['reward']  # Few environments return one.
  yield {'kind': 'rollout', **header, **extras}
  before: tuple[int, ...] = ()
  count = len(trajectory.turns)
  for i, turn in enumerate((*trajectory.turns, *trajectory.undelivered)):
    row = _plain(turn)
    ids = turn.completion.prompt_ids
    same = _common(before, ids)
    row['completion']['prompt_ids'] = [same, *ids[same:]]
    row['completion'] = _without(row['completion'], 'thoughts', 'thinking')
    del row['completion']['kept']
    row = _without(row, 'more')
    for result in (row['result'], *(one for _, one in row.get('more', ()))):
      if result is not None and not result['inner']:
        del result['inner']
    if turn.completion.kept is not None:
      counts, kept = turn.completion.kept.numbers()
      row['completion']['kept'] = {'counts': counts, 'ids': kept}
    before = ids
    if i < count:
      yield {'kind': 'turn', 'turn': i, **row}
    else:
      yield {'kind': 'undelivered', **row}


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
  """Returns values without those of these names that are empty: few have them."""
  return {k: v for k, v in values.items() if v or k not in names}


def _plain(value: Any) -> dict[str, Any]:
  return dataclasses.asdict(value, dict_factory=_dict)


def _dict(items):
  return {
    k: v.value
    if isinstance(v, (records.Status, records.ToolErrorKind))
    else dict(v)
    if isinstance(v, Mapping)
    else v
    for k, v in items
  }


def _common(a: Sequence[int], b: Sequence[int]) -> int:
  length = 0
  for x, y in zip(a, b):
    if x != y:
      break
    length += 1
  return length


def _rows(lines) -> list[tuple[records.Task, list[dict[str, Any]]]]:
  """Returns the tasks of the groups, each with the records of its rollouts."""
  groups: list[tuple[records.Task, list[dict[str, Any]]]] = []
  for line in lines:
    kind = line.pop('kind')
    if kind == 'group':
      task = line['task']
      task['answers'] = tuple(task['answers'])
      if 'world' in task:
        task['world'] = records.World.of(task['world'])
      groups.append((records.Task(**task), []))
    elif kind == 'rollout':
      groups[-1][1].append({'header': line, 'turns': []})
    else:
      groups[-1][1][-1]['turns'].append(line | {'delivered': kind == 'turn'})
  return groups


def _trajectory(row) -> records.Trajectory:
  names = {f.name for f in dataclasses.fields(records.Trajectory)}
  header = {k: v for k, v in row['header'].items() if k in names}
  header['status'] = records.Status(old_names.status(header['status']))
  header['modules'] = _modules(header['modules'])
  if 'score' in header:
    terms = header['score']['terms']
    header['score'] = records.Score(
      {name: records.Term(**term) for name, term in terms.items()}
    )
  elif parts := row['header'].get('reward_parts'):  # Schema 1.
    header['score'] = records.Score(
      {name: records.Term(value) for name, value in parts.items()}
    )
  if 'verdict' in header:
    header['verdict'] = _verdict(header['verdict'])
  turns, undelivered, before = [], [], ()
  for turn in row['turns']:
    same, *rest = turn['completion']['prompt_ids']
    before = (*before[:same], *rest)
    (turns if turn['delivered'] else undelivered).append(_turn(turn, before))
  return records.Trajectory(
    **header, turns=tuple(turns), undelivered=tuple(undelivered)
  )


def _verdict(row) -> records.Verdict:
  return records.Verdict(
    tuple(records.CheckResult(**result) for result in row['results']),
    tuple(row['changed']),
    tuple(row['violations']),
    row.get('reward'),
  )


def _result(row) -> records.ToolResult:
  error = row['error']
  inner = tuple(
    (records.ToolCall(**call), _result(result)) for call, result in row.get('inner', ())
  )
  return records.ToolResult(
    **(row | {'error': records.ToolErrorKind(error) if error else None, 'inner': inner})
  )


def _turn(row, prompt_ids) -> records.Turn:
  completion = row['completion'] | {'prompt_ids': prompt_ids}
  for name in ('response_ids', 'logprobs'):
    completion[name] = tuple(completion[name])
  if 'kept' in completion:
    completion['kept'] = records.KeptSets.of(**completion['kept'])
  sampling = row['sampling'] | {'stop': tuple(row['sampling']['stop'])}
  return records.Turn(
    completion=records.Completion(**completion),
    sampling=records.SamplingSpec(**sampling),
    parse_error=row['parse_error'],
    call=_call(row['call']),
    result=None if row['result'] is None else _result(row['result']),
    modules=_modules(row['modules']),
    memory=row['memory'],
    shortened=row['shortened'],
    more=tuple(
      (_call(call), None if result is None else _result(result))
      for call, result in row.get('more', ())
    ),
  )


def _call(row) -> records.ToolCall | None:
  return records.ToolCall(**row) if row else None


def _modules(rows) -> tuple[records.ModuleCall, ...]:
  return tuple(
    records.ModuleCall(**(row | {'prompts': tuple(row['prompts'])})) for row in rows
  )


def _main(directory: str) -> None:
  """Prints 'name, tab, digest' of every rollout file in a directory."""
  for path in sorted(epath.Path(directory).glob('*.zst')):
    print(f'{path.name}\t{digest(path)}')


if __name__ == '__main__':
  _main(sys.argv[1])
