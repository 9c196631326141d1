"""Turn rows that begin alike, laid out so that what they share is there once.

The rows of one query repeat themselves: G rollouts share the first prompt, and
turn t + 1's prompt repeats turn t's up to the last memory entry. Written in
depth-first order, token j is seen by token i exactly when
j <= i < subtree_end[j]. Token ids alone decide what is shared.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
  """Where the tokens of one row lie.

  Attributes:
    bin: index of the packed row.
    path: int[L], the place of each of its tokens, ascending.
    shared: number of its tokens, from the first on, that an earlier row wrote.
  """

  bin: int
  path: np.ndarray
  shared: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A layout of rows.

  Attributes:
    branches: one a row, in the order given.
    subtree_end: int[bins, T]; 0 where nothing lies.
  """

  branches: tuple[Branch, ...]
  subtree_end: np.ndarray


def share(
  rows: Sequence[np.ndarray],
  n_targets: Sequence[int],
  capacity: int,
  target_capacity: int,
  n_shared: Sequence[int] | None = None,
) -> Plan:
  """Lays rows out as forests, as many to a packed row as fit.

  Sorted, rows that share most are neighbours, so one pass finds the forest of
  all of them. Where the next row does not fit, a new packed row begins and
  repeats what that row shares with those before it. So rows that share nothing
  pack looser than batch.pack's layout 'rows' would have them.

  Args:
    rows: int[L_i] tokens; a row of none takes no place.
    n_targets: targets of each row that it shares with none.
    capacity: T; holds every row alone.
    target_capacity: N; likewise.
    n_shared: number of tokens of each row, from its second on, that are targets and
      count once where rows share them; None for none.
  """
  branches = [Branch(0, np.zeros(0, np.int64))] * len(rows)
  ends: list[np.ndarray] = []
  before = path = np.zeros(0, np.int64)
  cursor = targets = 0
  known = 1
  for index in sorted(range(len(rows)), key=lambda i: _sort_key(rows[i], i)):
    row = np.asarray(rows[index])
    if not len(row):
      continue
    shared = _common(before, row)
    wanted = 0 if n_shared is None else n_shared[index]
    # Of the tokens up to `known`, the second and later ones are targets already.
    known = max(min(known, shared), 1)
    more = n_targets[index] + max(wanted + 1 - known, 0)
    fits = cursor + len(row) - shared <= capacity and targets + more <= target_capacity
    if not ends or not fits:
      if ends:
        ends[-1][path] = cursor  # What is still open ends with the row.
      ends.append(np.zeros(capacity, np.int64))
      shared, cursor, targets, known = 0, 0, 0, 1
      more = n_targets[index] + wanted
    else:
      ends[-1][path[shared:]] = cursor
    new = len(row) - shared
    path = np.concatenate([path[:shared], np.arange(cursor, cursor + new)])
    branches[index] = Branch(len(ends) - 1, path, shared)
    cursor += new
    targets += more
    known = max(known, wanted + 1)
    before = row
  if ends:
    ends[-1][path] = cursor
  return Plan(tuple(branches), np.array(ends or [np.zeros(capacity, np.int64)]))


def unique_tokens(rows: Sequence[np.ndarray]) -> tuple[int, int]:
  """Counts the tokens of rows, where tokens that rows begin with count once.

  Args:
    rows: int[L_i] tokens; rows may be empty.

  Returns:
    The number of different tokens, where two are the same if they and everything
    before them are; and the number of tokens that these see, themselves among them.
  """
  tokens = pairs = 0
  before = np.zeros(0, np.int64)
  for index in sorted(range(len(rows)), key=lambda i: _sort_key(rows[i], i)):
    row = np.asarray(rows[index])
    shared, length = _common(before, row), len(row)
    tokens += length - shared
    pairs += (length * (length + 1) - shared * (shared + 1)) // 2
    before = row
  return tokens, pairs


def _sort_key(row: np.ndarray, index: int) -> tuple[bytes, int]:
  """Orders rows like their tokens; big-endian bytes compare as numbers do."""
  return np.asarray(row).astype('>u4').tobytes(), index


def _common(a: np.ndarray, b: np.ndarray) -> int:
  """Returns how many tokens two rows share from the first on."""
  n = min(len(a), len(b))
  differ = np.flatnonzero(a[:n] != b[:n])
  return int(differ[0]) if len(differ) else n


def apart(
  places: Sequence[tuple[int, int]], lengths: Sequence[int], capacity: int
) -> Plan:
  """Returns the layout in which every row is a tree of its own.

  Args:
    places: (packed row, first place) of each row.
    lengths: tokens of each row.
    capacity: T.
  """
  n_bins = 1 + max(bin_index for bin_index, _ in places)
  ends = np.zeros((n_bins, capacity), np.int64)
  branches = []
  for (bin_index, start), length in zip(places, lengths, strict=True):
    path = np.arange(start, start + length)
    ends[bin_index, path] = start + length
    branches.append(Branch(bin_index, path))
  return Plan(tuple(branches), ends)
