"""Reads a compiled program: what it sends between devices, loops counted.

XLA's own cost_analysis counts a loop's body once, whatever its trip count.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

_BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  's16': 2,
  'u16': 2,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
}
KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'\b(calls|to_apply|body|condition|true_computation|false_computation)'
  r'=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)"?\}')
# Three ways to write them: each device; [groups, size] of an iota; axes of a mesh.
_LONE = re.compile(r'replica_groups=(\{\{\d+\}(,\{\d+\})*\}|\[\d+,1\]<=)')
_MESH_GROUPS = re.compile(r'replica_groups=mesh\[(.*?)\] ?\{(.*?)\}')
_MESH_AXIS = re.compile(r"'(\w+)'=(\d+)")
_CONSTANT = re.compile(r'= s32\[\]\S* constant\((\d+)\)')


@dataclasses.dataclass(frozen=True)
class Sent:
  """What one kind of collective comes to, on one device.

  Attributes:
    count: number of times that it runs.
    bytes: size of what it returns on this device, over all those times. About twice
      that size goes over the wire for an all-reduce, and n times for a reduce-scatter
      over n.
  """

  count: int = 0
  bytes: int = 0


@dataclasses.dataclass
class _Computation:
  """What one computation sends, and what it calls.

  Attributes:
    sent: (kind, bytes).
    calls: (name, times).
    conditions: body of a loop that does not say its trip count -> condition.
    constants: integers in it; a loop's condition has one if a limit is known.
  """

  sent: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  calls: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  conditions: dict[str, str] = dataclasses.field(default_factory=dict)
  constants: list[int] = dataclasses.field(default_factory=list)


def collectives(text: str) -> Mapping[str, Sent]:
  """Returns what a program's collectives come to, by kind.

  A loop whose trip count is data (micro-batches, chunks of logits) counts once:
  the figures are of one micro-batch. Both branches of a condition count. One
  among groups of a single device sends nothing, and counts as none.

  Args:
    text: `compiled.as_text()`.

  Raises:
    ValueError: it has no entry computation.
  """
  computations, entry = _parse(text)
  if entry is None:
    raise ValueError('no ENTRY computation: not the text of a compiled program')
  totals = collections.Counter(), collections.Counter()

  def walk(name, times):
    for kind, size in computations[name].sent:
      totals[0][kind] += times
      totals[1][kind] += times * size
    for called, trips in computations[name].calls:
      if called not in computations:
        continue
      condition = computations.get(computations[name].conditions.get(called, ''))
      if condition is not None and len(condition.constants) == 1:
        trips = condition.constants[0]
      walk(called, times * trips)

  walk(entry, 1)
  return {
    kind: Sent(totals[0][kind], totals[1][kind]) for kind in KINDS if totals[0][kind]
  }


def sent_by(line: str) -> str | None:
  """Returns which of KINDS an instruction is, if it sends anything."""
  instruction = _INSTRUCTION.match(line)
  kind = instruction[2].removesuffix('-start') if instruction else None
  if kind not in KINDS or _LONE.search(line):
    return None
  if by_mesh := _MESH_GROUPS.search(line):
    sizes = dict(_MESH_AXIS.findall(by_mesh[1]))
    if all(sizes[axis] == '1' for axis in re.findall(r"'(\w+)'", by_mesh[2])):
      return None
  return kind


def _parse(text: str) -> tuple[dict[str, _Computation], str | None]:
  """Returns every computation by name, and the entry's name."""
  found, entry, current = {}, None, None
  for line in text.splitlines():
    if opened := _COMPUTATION.match(line):
      current = found[opened[2]] = _Computation()
      if opened[1]:
        entry = opened[2]
      continue
    instruction = _INSTRUCTION.match(line)
    if current is None or not instruction:
      continue
    current.constants += [int(n) for n in _CONSTANT.findall(line)]
    shape, op = instruction[1], instruction[2]
    if op.removesuffix('-start') in KINDS:
      if kind := sent_by(line):
        current.sent.append((kind, _size(shape, op)))
      continue  # What it applies is an addition.
    roles, trips = dict(_CALLED.findall(line)), 1
    if op == 'while':
      if known := _TRIPS.search(line):
        trips = int(known[1])
      else:  # From 0 by 1 to the one constant of its condition, if it has one.
        current.conditions[roles['body']] = roles['condition']
    current.calls += [
      (called, trips if role == 'body' else 1) for role, called in roles.items()
    ]
    for branches in _BRANCHES.findall(line):
      current.calls += [(b.strip(' %'), 1) for b in branches.split(',')]
  return found, entry


def _size(shape: str, op: str) -> int:
  """Returns the bytes of a result; of a started one, what will be returned."""
  sizes = []
  for dtype, dims in _SHAPE.findall(shape):
    size = _BYTES.get(dtype, 0)
    for dim in filter(None, dims.split(',')):
      size *= int(dim)
    sizes.append(size)
  if op.endswith('-start') and op != 'all-reduce-start':
    # (operands, results, ...): operands come first, then as many results.
    data = [s for s in sizes if s > 4]
    return sum(data[len(data) // 2 :])
  return sum(sizes)
