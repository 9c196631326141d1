"""Turn rows of any length, packed into arrays of a few fixed shapes.

Several turn rows share one row of T tokens, kept apart by segment ids. Position
t scores token t + 1, so the last token of a turn row is only ever a target and
a row of n tokens takes n - 1 places.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TurnRow:
  """One planner turn (or one SFT example), on the host.

  Attributes:
    prompt_ids: int[P], P >= 1.
    response_ids: int[A], the tokens that were sampled; A may be 0.
    target_weight: weight of each response token in the loss.
    behavior_logprobs: float32[A], as recorded when sampled; None (SFT) packs 0.
    old_logprobs: float32[A] of the trainer before the step, or None for
      behavior_logprobs.
    advantage: A_i of the rollout.
    temperature: what the response was sampled at, > 0.
    prompt_weight: weight of each prompt token but the first (SFT); 0 for RL.
  """

  prompt_ids: np.ndarray
  response_ids: np.ndarray
  target_weight: float
  behavior_logprobs: np.ndarray | None = None
  old_logprobs: np.ndarray | None = None
  advantage: float = 0.0
  temperature: float = 1.0
  prompt_weight: float = 0.0

  def __post_init__(self):
    if not len(self.prompt_ids):
      raise ValueError('a turn row needs a prompt: its first token is unscored')
    for name in ('behavior_logprobs', 'old_logprobs'):
      value = getattr(self, name)
      if value is not None and len(value) != len(self.response_ids):
        raise ValueError(
            f'{name}: {len(value)} for {len(self.response_ids)} response tokens'
        )
    if not 0 < self.temperature < float('inf'):
      raise ValueError(
          f'temperature must be finite and > 0 to train: {self.temperature}'
      )
    for name in ('target_weight', 'prompt_weight'):
      if not 0 <= getattr(self, name) < float('inf'):
        raise ValueError(f'{name} must be >= 0: {getattr(self, name)}')
    if not np.isfinite(self.advantage):
      raise ValueError(f'advantage must be finite: {self.advantage}')

  @property
  def places(self) -> int:
    """Positions that the row takes; 0 when it has no target at all."""
    if not len(self.response_ids) and not self.prompt_weight:
      return 0
    return len(self.prompt_ids) + len(self.response_ids) - 1


@flax.struct.dataclass
class TurnBatch:
  """What one optimizer update reads: M micro-batches of B rows of T tokens.

  A target is a position with weight > 0; every other per-target field is 0
  where there is none (temperature: 1). Padding is segment 0. The masks are
  these fields alone: no token id means padding.
  """

  token_ids: Array  # int32[M, B, T]
  positions: Array  # int32[M, B, T], from 0 in each segment
  segment_ids: Array  # int32[M, B, T], 1, 2, ... in each row; 0 is padding
  targets: Array  # int32[M, B, T], token t + 1 of the same segment
  weights: Array  # float32[M, B, T], 0 where position t has no target
  advantages: Array  # float32[M, B, T]
  behavior_logprobs: Array  # float32[M, B, T]
  old_logprobs: Array  # float32[M, B, T]
  temperature: Array  # float32[M, B, T]
  n_micro: Array  # int32[], micro-batches in use; the others are skipped

  def micro(self, index) -> 'TurnBatch':
    """Returns micro-batch `index`: the same fields without their axis M."""
    per_token = dataclasses.replace(self, n_micro=None)
    one = jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False),
        per_token,
    )
    return dataclasses.replace(one, n_micro=self.n_micro)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a turn row went: batch[micro, row, start : start + length]."""

  micro: int
  row: int
  start: int
  length: int
  n_response: int


@dataclasses.dataclass(frozen=True)
class Packing:
  """How rows were packed.

  Attributes:
    places: one a turn row, in the order given.
    n_rows: turn rows given.
    n_empty: turn rows without a target, which take no place.
    n_tokens: positions in use.
    n_targets: targets, those of weight 0 excluded.
    n_micro: micro-batches in use.
    fill: n_tokens over the positions of the micro-batches in use.
  """

  places: tuple[Place, ...]
  n_rows: int
  n_empty: int
  n_tokens: int
  n_targets: int
  n_micro: int
  fill: float


def pack(
    rows: Sequence[TurnRow],
    *,
    tokens_per_row: int,
    rows_per_micro: int,
    max_micro: int | None = None,
    block: int | None = None,
    pad_id: int = 0,
) -> tuple[TurnBatch, Packing]:
  """Packs turn rows first-fit, longest first; deterministic; drops nothing.

  Args:
    rows: the rows of one optimizer update.
    tokens_per_row: T.
    rows_per_micro: B.
    max_micro: M; None takes the next power of two that holds the rows, so that
      few shapes are ever compiled. Unused micro-batches cost no time.
    block: if given, a turn row starts at a multiple of `block` places or lies
      between two. A product over many slots is summed block by block; so every
      turn row is cut as it would be alone, and rounded alike (on CPU, with 128:
      to the same bits as when it was sampled). None packs tighter.
    pad_id: token id put where nothing is; any id does.

  Returns:
    The batch, as host arrays, and where every row went.

  Raises:
    ValueError: a row is longer than T + 1 tokens, or the rows need more
      than max_micro micro-batches, or there are no rows.
  """
  if not rows:
    raise ValueError('no rows to pack')
  for index, row in enumerate(rows):
    if row.places > tokens_per_row:
      raise ValueError(
          f'row {index}: {len(row.prompt_ids)} prompt and '
          f'{len(row.response_ids)} response tokens do not fit '
          f'tokens_per_row={tokens_per_row} (+ 1)'
      )
  if block is not None and block < 1:
    raise ValueError(f'block must be at least 1: {block}')
  bins = _first_fit(
      [row.places for row in rows], tokens_per_row, block or tokens_per_row
  )
  n_bins = 1 + max(bin_index for bin_index, _ in bins)
  n_micro = max(1, -(-n_bins // rows_per_micro))
  if max_micro is None:
    max_micro = 1 << (n_micro - 1).bit_length()
  if n_micro > max_micro:
    raise ValueError(
        f'{len(rows)} rows need {n_micro} micro-batches of {rows_per_micro} x '
        f'{tokens_per_row} tokens; max_micro is {max_micro}'
    )
  places = tuple(
      Place(*divmod(bin_index, rows_per_micro), start, row.places,
            len(row.response_ids))
      for row, (bin_index, start) in zip(rows, bins, strict=True)
  )
  shape = (max_micro, rows_per_micro, tokens_per_row)
  batch = _fill(rows, places, shape, pad_id, n_micro)
  n_tokens = sum(place.length for place in places)
  packing = Packing(
      places=places,
      n_rows=len(rows),
      n_empty=sum(place.length == 0 for place in places),
      n_tokens=n_tokens,
      n_targets=int((batch.weights > 0).sum()),
      n_micro=n_micro,
      fill=n_tokens / (n_micro * rows_per_micro * tokens_per_row),
  )
  return batch, packing


def _first_fit(
    sizes: Sequence[int], capacity: int, block: int
) -> list[tuple[int, int]]:
  """Returns (bin, start) for each size; first fit, decreasing, stable."""
  blocks = [
      min(block, capacity - start) for start in range(0, capacity, block)
  ]
  bins: list[list[int]] = [list(blocks)]  # Room left in each block.
  result = [(0, 0)] * len(sizes)
  for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
    size = sizes[index]
    for bin_index, rooms in enumerate(bins):
      first = _first_block(rooms, blocks, size)
      if first is not None:
        break
    else:
      bin_index, rooms, first = len(bins), list(blocks), 0
      bins.append(rooms)
    result[index] = (bin_index, first * block + blocks[first] - rooms[first])
    # A row longer than a block takes empty ones, the last of them in part.
    while size:
      taken = min(size, rooms[first])
      rooms[first] -= taken
      size -= taken
      first += 1
  return result


def _first_block(
    rooms: Sequence[int], blocks: Sequence[int], size: int
) -> int | None:
  """Returns the first block from which `size` places fit, or None."""
  for first, room in enumerate(rooms):
    if size <= room:
      return first
    i = first
    while i < len(rooms) and rooms[i] == blocks[i]:
      room = sum(blocks[first : i + 1])
      if size <= room:
        return first
      i += 1
  return None


def _fill(
    rows: Sequence[TurnRow],
    places: Sequence[Place],
    shape: tuple[int, int, int],
    pad_id: int,
    n_micro: int,
) -> TurnBatch:
  """Returns the arrays; segment ids follow the rows' order in each row."""
  batch = TurnBatch(
      token_ids=np.full(shape, pad_id, np.int32),
      positions=np.zeros(shape, np.int32),
      segment_ids=np.zeros(shape, np.int32),
      targets=np.full(shape, pad_id, np.int32),
      weights=np.zeros(shape, np.float32),
      advantages=np.zeros(shape, np.float32),
      behavior_logprobs=np.zeros(shape, np.float32),
      old_logprobs=np.zeros(shape, np.float32),
      temperature=np.ones(shape, np.float32),
      n_micro=np.int32(n_micro),
  )
  segments = np.zeros(shape[:2], np.int32)
  for row, place in zip(rows, places, strict=True):
    if not place.length:
      continue
    segments[place.micro, place.row] += 1
    end = place.start + place.length
    at = (place.micro, place.row, slice(place.start, end))
    first = len(row.prompt_ids) - 1  # Scores the first response token.
    ids = np.concatenate([row.prompt_ids, row.response_ids])
    batch.token_ids[at] = ids[:-1]
    batch.targets[at] = ids[1:]
    batch.positions[at] = np.arange(place.length)
    batch.segment_ids[at] = segments[place.micro, place.row]
    batch.weights[at][:first] = row.prompt_weight
    batch.weights[at][first:] = row.target_weight
    batch.advantages[at][first:] = row.advantage
    batch.temperature[at] = row.temperature
    if row.behavior_logprobs is not None:
      batch.behavior_logprobs[at][first:] = row.behavior_logprobs
    old = row.old_logprobs
    if old is None:
      old = row.behavior_logprobs
    if old is not None:
      batch.old_logprobs[at][first:] = old
  return batch


def unpack(packing: Packing, values: Array) -> list[np.ndarray]:
  """Returns each turn row's response targets of values[M, B, T], in order."""
  values = np.asarray(values)
  result = []
  for place in packing.places:
    end = place.start + place.length
    start = end - place.n_response
    result.append(values[place.micro, place.row, start:end])
  return result
