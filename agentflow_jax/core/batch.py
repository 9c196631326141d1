"""Turn rows of any length, packed into arrays of a few fixed shapes.

A packed row holds T tokens as a forest in depth-first order, and N targets. In
layout 'rows' every turn row is a tree of its own; in layout 'forest' turn rows
share the tokens that they begin with, so an update costs what the unique tokens
cost and gives the same loss and gradients. The last token of a turn row is only
ever a target, so a row of n tokens takes n - 1 places.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import numpy as np

from agentflow_jax.core import forest

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TurnRow:
  """One planner turn (or one SFT example), on the host.

  Attributes:
    prompt_ids: int[P], P >= 1.
    response_ids: int[A], the tokens that were sampled; A may be 0.
    target_weight: weight of each response token in the loss.
    behavior_logprobs: float32[A], recorded when the tokens were sampled; None (SFT)
      packs 0.
    old_logprobs: float32[A] of the trainer before the step, or None for
      behavior_logprobs.
    advantage: A_i of the rollout.
    temperature: temperature that the response was sampled at, > 0.
    prompt_weight: weight of each prompt token but the first (SFT); 0 for RL. In a
      forest, where rows share them, rows with one are all of the same temperature.
    kept: int[A, <= S], the ids that each response token was drawn from, itself
      among them, padded with -1 at the end; None for the whole vocabulary.
    rollout: number of the row's rollout; rows of one rollout have the same.
    fresh: whether this step's own parameters sampled the response.
  """

  prompt_ids: np.ndarray
  response_ids: np.ndarray
  target_weight: float
  behavior_logprobs: np.ndarray | None = None
  old_logprobs: np.ndarray | None = None
  advantage: float = 0.0
  temperature: float = 1.0
  prompt_weight: float = 0.0
  kept: np.ndarray | None = None
  rollout: int = 0
  fresh: bool = True

  def __post_init__(self):
    if not len(self.prompt_ids):
      raise ValueError('a turn row needs a prompt: its first token is unscored')
    for name in ('behavior_logprobs', 'old_logprobs', 'kept'):
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
    if self.kept is not None:
      is_in = (self.kept == self.response_ids[:, None]).any(axis=-1)
      is_in &= (self.kept[:, :1] >= 0).all(axis=-1)
      if not is_in.all():
        first = int(np.argmin(is_in))
        raise ValueError(
          f'kept: response token {first}, {self.response_ids[first]}, is not'
          f' in the set that it was drawn from: {self.kept[first].tolist()}'
        )

  @property
  def places(self) -> int:
    """Positions that the row takes; 0 when it has no target at all."""
    if not len(self.response_ids) and not self.prompt_weight:
      return 0
    return len(self.prompt_ids) + len(self.response_ids) - 1

  @property
  def n_prompt_targets(self) -> int:
    """Tokens of the prompt that are scored."""
    return len(self.prompt_ids) - 1 if self.prompt_weight else 0


@flax.struct.dataclass
class TurnBatch:
  """What one optimizer update reads: M micro-batches of B rows.

  Token j of a row is seen by token i exactly when j <= i < subtree_end[j]. The
  logits of a target come from the last hidden state of its parent, the token
  before it; several targets may share a parent. A target counts where its
  weight is > 0; where there is none, its fields are 0 (temperature: 1). The
  masks are these fields alone: no token id means padding.
  """

  token_ids: Array  # int32[M, B, T]
  positions: Array  # int32[M, B, T], depth in the tree, from 0
  subtree_end: Array  # int32[M, B, T], one past all that see it; 0 is padding
  parents: Array  # int32[M, B, N], a place of the same row
  targets: Array  # int32[M, B, N], the token after the parent
  responses: Array  # int32[M, B, N], 1, 2, ... by turn row; 0 is padding
  weights: Array  # float32[M, B, N]
  advantages: Array  # float32[M, B, N]
  behavior_logprobs: Array  # float32[M, B, N]
  old_logprobs: Array  # float32[M, B, N]
  temperature: Array  # float32[M, B, N]
  n_micro: Array | np.int32  # int32[], micro-batches in use; the others are skipped
  # int32[M, B, N, S], the ids that a target was drawn from, -1 for none; where
  # the first is -1, and if this is None, that is the whole vocabulary.
  kept: Array | None = None
  # float32[M, B, N], factor of the policy term, 0 for a target that is rejected; None
  # for 1 everywhere. See corrections.importance_of.
  importance: Array | None = None
  # bool[M, B, N], whether the sampler had this step's parameters, so that the gap
  # between its log probabilities and the trainer's must be small; None for all.
  fresh: Array | None = None

  def micro(self, index) -> 'TurnBatch':
    """Returns micro-batch `index`: the same fields without their axis M."""
    per_token = dataclasses.replace(self, n_micro=None)
    one = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), per_token
    )
    return dataclasses.replace(one, n_micro=self.n_micro)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
  """Where a turn row went: batch[micro, row, ...].

  Attributes:
    micro, row: indices of the packed row.
    path: int[L], the places of its tokens.
    shared: number of these tokens, from the first on, that another turn row wrote.
    first: the target that is its first response token.
    n_response: number of targets that are its response.
  """

  micro: int
  row: int
  path: np.ndarray
  shared: int
  first: int
  n_response: int


@dataclasses.dataclass(frozen=True)
class Packing:
  """How rows were packed.

  Attributes:
    places: one a turn row, in the order given.
    n_rows: turn rows given.
    n_empty: turn rows without a target, which take no place.
    n_row_tokens: places that the turn rows take without sharing.
    n_tokens: places in use.
    n_targets: targets, those of weight 0 excluded.
    n_micro: micro-batches in use.
    fill: n_tokens over the places of the micro-batches in use.
  """

  places: tuple[Place, ...]
  n_rows: int
  n_empty: int
  n_row_tokens: int
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
  layout: Literal['rows', 'forest'] = 'rows',
  block: int | None = None,
  pad_id: int = 0,
  max_kept: int = 0,
) -> tuple[TurnBatch, Packing]:
  """Packs turn rows; deterministic; drops nothing.

  A packed row has as many targets as tokens at most: N = T.

  Args:
    rows: the rows of one optimizer update.
    tokens_per_row: T.
    rows_per_micro: B.
    max_micro: M; None takes the next power of two that holds the rows, so that
      few shapes are ever compiled. Unused micro-batches cost no time.
    layout: 'rows' packs first-fit, longest first; 'forest' shares what rows
      begin with (see forest.share).
    block: alignment of turn rows in layout 'rows', or None. With it a turn row starts
      at a multiple of `block` places or lies between two. A product over many slots is
      summed block by block; so every turn row is cut as it would be alone, and rounded
      alike (on CPU, with 128: to the same bits as when it was sampled), and a target is
      put where its parent is. None packs rows tighter, and targets one after the other,
      so that fewer chunks of logits are formed.
    pad_id: token id put where nothing is; any id does.
    max_kept: S, which holds every row's sets, so that shapes do not depend on
      them; 0 for rows without, and a batch without.

  Returns:
    The batch, as host arrays, and where every row went.

  Raises:
    ValueError: a row is longer than T + 1 tokens, or a set of it larger than S,
      or the rows need more than max_micro micro-batches, or there are no rows.
  """
  _check(rows, tokens_per_row, max_kept)
  temperatures = {row.temperature for row in rows if row.prompt_weight}
  if layout == 'forest' and len(temperatures) > 1:
    raise ValueError('rows with a prompt_weight differ in temperature')
  if block is not None and (block < 1 or layout == 'forest'):
    raise ValueError(f'block must be at least 1, in layout rows: {block}')
  plan = _plan(rows, tokens_per_row, layout, block)
  n_micro = -(-len(plan.subtree_end) // rows_per_micro)
  if max_micro is None:
    max_micro = 1 << (n_micro - 1).bit_length()
  if n_micro > max_micro:
    raise ValueError(
      f'{len(rows)} rows need {n_micro} micro-batches of {rows_per_micro} x '
      f'{tokens_per_row} tokens; max_micro is {max_micro}'
    )
  shape = (max_micro, rows_per_micro, tokens_per_row)
  batch = _empty(shape, pad_id, n_micro, max_kept)
  places = _fill(batch, rows, plan, block is not None)
  n_tokens = int((batch.subtree_end > 0).sum())
  packing = Packing(
    places=places,
    n_rows=len(rows),
    n_empty=sum(not row.places for row in rows),
    n_row_tokens=sum(row.places for row in rows),
    n_tokens=n_tokens,
    n_targets=int((batch.weights > 0).sum()),
    n_micro=n_micro,
    fill=n_tokens / (n_micro * rows_per_micro * tokens_per_row),
  )
  return batch, packing


def _check(rows: Sequence[TurnRow], tokens_per_row: int, max_kept: int) -> None:
  """Refuses rows that do not fit, see pack."""
  if not rows:
    raise ValueError('no rows to pack')
  for index, row in enumerate(rows):
    if row.places > tokens_per_row:
      raise ValueError(
        f'row {index}: {len(row.prompt_ids)} prompt and '
        f'{len(row.response_ids)} response tokens do not fit '
        f'tokens_per_row={tokens_per_row} (+ 1)'
      )
    if row.kept is not None and row.kept.shape[1] > max_kept:
      raise ValueError(
        f'row {index}: sets of {row.kept.shape[1]} ids do not fit max_kept={max_kept}'
      )


def pack_tightest(
  rows: Sequence[TurnRow], lengths: Sequence[int], **options: Any
) -> tuple[TurnBatch, Packing]:
  """Packs into rows of whichever length pads least; of equals, the longest.

  Every length is a program of its own, so there should be few.

  Args:
    rows: rows of one optimizer update.
    lengths: values of T to choose from; those that a row exceeds are left out.
    **options: the others of `pack`.

  Raises:
    ValueError: no length holds the longest row, or see `pack`.
  """
  longest = max((row.places for row in rows), default=0)
  fitting = [n for n in lengths if n >= longest] or [max(lengths)]
  packed = [
    pack(rows, tokens_per_row=n, **options) for n in sorted(fitting, reverse=True)
  ]
  return min(packed, key=lambda p: p[1].n_micro * p[0].token_ids.shape[-1])


def _plan(rows, tokens_per_row, layout, block) -> forest.Plan:
  """Decides where the tokens of every row go."""
  if layout == 'forest':
    return forest.share(
      [np.concatenate([r.prompt_ids, r.response_ids])[: r.places] for r in rows],
      [len(r.response_ids) for r in rows],
      tokens_per_row,
      tokens_per_row,
      [r.n_prompt_targets for r in rows],
    )
  lengths = [row.places for row in rows]
  bins = _first_fit(lengths, tokens_per_row, block or tokens_per_row)
  return forest.apart(bins, lengths, tokens_per_row)


def _first_fit(
  sizes: Sequence[int], capacity: int, block: int
) -> list[tuple[int, int]]:
  """Returns (bin, start) for each size; first fit, decreasing, stable."""
  blocks = [min(block, capacity - start) for start in range(0, capacity, block)]
  bins: list[list[int]] = [list(blocks)]  # Room left in each block.
  result = [(0, 0)] * len(sizes)
  for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
    size = sizes[index]
    for bin_index, rooms in enumerate(bins):  # noqa: B007 (read after the loop)
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


def _first_block(rooms: Sequence[int], blocks: Sequence[int], size: int) -> int | None:
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
  batch: TurnBatch, rows: Sequence[TurnRow], plan: forest.Plan, at_parents: bool
) -> tuple[Place, ...]:
  """Writes rows into a batch that is all padding; returns where they went.

  Args:
    batch: host arrays; changed.
    rows: the turn rows.
    plan: places of their tokens.
    at_parents: whether a target is put where its parent is, rather than after the last.
  """
  shape = batch.token_ids.shape
  if at_parents:
    batch.parents[:] = np.arange(shape[2], dtype=np.int32)
  ends = batch.subtree_end.reshape(-1, shape[2])
  ends[: len(plan.subtree_end)] = plan.subtree_end
  turns = np.zeros(shape[:2], np.int32)
  used = np.zeros(shape[:2], np.int32)
  # Place of a token -> where it is a target as a token of a prompt; -1 for nowhere.
  scored = np.full(shape, -1, np.int32)
  places = []
  for row, branch in zip(rows, plan.branches, strict=True):
    here = divmod(branch.bin, shape[1])
    path = branch.path
    # A prompt's token that another row has, too, is one target with both weights.
    n_prompt = row.n_prompt_targets
    found = scored[here][path[1 : 1 + n_prompt]]
    known = int(np.searchsorted(found < 0, True))
    batch.weights[here][found[:known]] += row.prompt_weight
    count = n_prompt - known + len(row.response_ids)
    # The parents are the last `count` of the path.
    first = len(path) - count
    if at_parents:
      slots = path[first:]
    else:
      slots = used[here] + np.arange(count)
    new, response = slots[: n_prompt - known], slots[n_prompt - known :]
    places.append(
      Place(
        *here,
        path,
        branch.shared,
        int(response[0]) if len(response) else 0,
        len(row.response_ids),
      )
    )
    if not len(path):
      continue
    used[here] += count
    turns[here] += 1
    ids = np.concatenate([row.prompt_ids, row.response_ids])
    batch.token_ids[here][path] = ids[:-1]
    batch.positions[here][path] = np.arange(len(path))
    batch.parents[here][slots] = path[first:]
    batch.targets[here][slots] = ids[first + 1 :]
    batch.responses[here][slots] = turns[here]
    batch.weights[here][new] = row.prompt_weight
    children = path[known + 1 : n_prompt + 1]  # The last may have no place.
    scored[here][children] = new[: len(children)]
    batch.weights[here][response] = row.target_weight
    batch.advantages[here][response] = row.advantage
    batch.temperature[here][slots] = row.temperature
    if row.kept is not None and len(response):
      assert batch.kept is not None  # Made for the largest set of all rows.
      batch.kept[here][response, : row.kept.shape[1]] = row.kept
    if row.behavior_logprobs is not None:
      batch.behavior_logprobs[here][response] = row.behavior_logprobs
    old = row.old_logprobs
    if old is None:
      old = row.behavior_logprobs
    if old is not None:
      batch.old_logprobs[here][response] = old
  return tuple(places)


def _empty(
  shape: tuple[int, int, int], pad_id: int, n_micro: int, max_kept: int
) -> TurnBatch:
  """Returns a batch that is all padding."""
  return TurnBatch(
    token_ids=np.full(shape, pad_id, np.int32),
    positions=np.zeros(shape, np.int32),
    subtree_end=np.zeros(shape, np.int32),
    parents=np.zeros(shape, np.int32),
    targets=np.full(shape, pad_id, np.int32),
    responses=np.zeros(shape, np.int32),
    weights=np.zeros(shape, np.float32),
    advantages=np.zeros(shape, np.float32),
    behavior_logprobs=np.zeros(shape, np.float32),
    old_logprobs=np.zeros(shape, np.float32),
    temperature=np.ones(shape, np.float32),
    n_micro=np.int32(n_micro),
    kept=np.full((*shape, max_kept), -1, np.int32) if max_kept else None,
  )


def unpack(packing: Packing, values: Array) -> list[np.ndarray]:
  """Returns each turn row's response targets of values[M, B, N], in order."""
  values = np.asarray(values)
  return [
    values[p.micro, p.row, p.first : p.first + p.n_response] for p in packing.places
  ]


def placed(packing: Packing, values: Sequence[Array], like: Array) -> np.ndarray:
  """Returns an array of a batch's shape: the inverse of `unpack`.

  Args:
    packing: places of the turn rows in the batch.
    values: one array[A] for each turn row, in the order in which they were given.
    like: array [M, B, N] of the batch whose shape and dtype are taken.

  Returns:
    The values at the rows' response targets, 0 elsewhere.
  """
  array = np.zeros(like.shape, like.dtype)
  for place, value in zip(packing.places, values, strict=True):
    end = place.first + place.n_response
    array[place.micro, place.row, place.first : end] = value
  return array
