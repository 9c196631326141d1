"""Inputs of prefill and decode calls, and the end of rows."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from agentflow_jax.inference import api, decoding, gathered, pages as pages_lib
from agentflow_jax.inference import prefixes, sampling


@dataclasses.dataclass(eq=False)
class Row:
  """A request in a slot.

  Attributes:
    request: request of the caller.
    lease: its pages.
    cursor: nodes of the lease before this one are ready.
    turn: number of the call of prefill that read a piece of it last.
    ids: token ids sampled so far.
    logprobs: log probabilities of these ids [nats].
    finite: number of these that are known to be finite, in order.
    sets: candidate set of each of these ids, where sets are recorded.
    top: ids and log probabilities of the most likely tokens of each position, where
      they are asked for.
    is_copied: whether the lease's tail was copied to a page of its own.
    is_gathered: whether gathered.Store has its prompt.
  """

  request: api.Request
  lease: prefixes.Lease
  cursor: int = 0
  turn: int = 0
  ids: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[float] = dataclasses.field(default_factory=list)
  finite: int = 0
  sets: list[np.ndarray] = dataclasses.field(default_factory=list)
  top: list[tuple[tuple[int, ...], tuple[float, ...]]] = dataclasses.field(
    default_factory=list
  )
  is_copied: bool = False
  is_gathered: bool = False

  def is_read(self) -> bool:
    """Says whether all of the prompt but its last token is in its pages."""
    nodes = self.lease.nodes
    while self.cursor < len(nodes) and nodes[self.cursor].ready:
      self.cursor += 1
    return self.cursor == len(nodes)


Piece = tuple[Row, int, list[prefixes.Node]]


def next_pieces(
  rows: Sequence[Row], config: api.EngineConfig, lanes: int = 1
) -> list[list[Piece]]:
  """Chooses what the next call of prefill reads.

  Rows take turns, a piece each, so that a long prompt does not hold up short
  ones. A page that rows share is read for the first of them; the others go on
  behind it, in the same call where there is room.

  Args:
    rows: rows in the order of their turns.
    config: the shapes.
    lanes: number of lanes that read side by side: none sees what another one reads.

  Returns:
    Of each lane up to its part of `prefill_pieces` of (row, index of its first
    node, nodes).
  """
  assert config.prefill_pieces is not None and config.piece_tokens is not None
  pieces = [[] for _ in range(lanes)]
  room, left = config.prefill_pieces // lanes, config.prefill_pieces
  taken: dict[prefixes.Node, list[Piece]] = {}  # And the lane that has it.
  most = config.piece_tokens // config.page_tokens
  cursors = {row: row.cursor for row in rows}
  is_open = lambda node: not (node.ready or node in taken)
  progress = True
  while progress and left:
    progress = False
    for row in rows:
      nodes, start = row.lease.nodes, cursors[row]
      while start < len(nodes) and not is_open(nodes[start]):
        start += 1
      end = start
      while end < min(len(nodes), start + most) and is_open(nodes[end]):
        end += 1
      if start == end:
        continue
      # What comes before it in this call is in one lane: each piece of it went
      # behind the one before.
      behind = [taken[node] for node in nodes[:start] if node in taken]
      lane = min(behind or pieces, key=len)
      if len(lane) == room:
        continue
      cursors[row] = end
      taken.update(dict.fromkeys(nodes[start:end], lane))
      lane.append((row, start, nodes[start:end]))
      progress, left = True, left - 1
      if not left:
        break
  return pieces


def pack_pieces(
  pieces: Sequence[Piece], config: api.EngineConfig, lanes: int = 1
) -> decoding.Segments:
  """Lays a lane's pieces out as host arrays, then unused ones."""
  assert config.prefill_pieces is not None and config.piece_tokens is not None
  size, page = config.prefill_pieces // lanes, config.page_tokens
  segments = decoding.Segments(
    ids=np.zeros((size, config.piece_tokens), np.int32),
    starts=np.zeros((size,), np.int32),
    tables=np.full((size, config.table_pages), pages_lib.SCRATCH, np.int32),
    writes=np.full((size, config.piece_tokens // page), pages_lib.SCRATCH, np.int32),
  )
  for i, (row, start, nodes) in enumerate(pieces):
    ids = [token for node in nodes for token in node.ids]
    segments.ids[i, : len(ids)] = ids
    segments.starts[i] = start * page
    before = [node.page for node in row.lease.nodes[: start + len(nodes)]]
    segments.tables[i, : len(before)] = before
    segments.writes[i, : len(nodes)] = before[start:]
  return segments


def pack_apart(
  pieces: Sequence[Piece], config: api.EngineConfig, lanes: int
) -> tuple[pages_lib.Copies, decoding.Segments, pages_lib.Copies]:
  """Lays a lane's pieces out for decoding.prefill_apart.

  Returns:
    The pages that are copied to its desk, the pieces with pages of the desk, and
    the pages that are copied from there.
  """
  segments = pack_pieces(pieces, config, lanes)
  # A page's place on the desk.
  places = {pages_lib.SCRATCH: pages_lib.SCRATCH}
  for page in segments.tables.flat:
    places.setdefault(int(page), len(places))
  new = set(segments.writes.flat) - {pages_lib.SCRATCH}
  old = places.keys() - new - {pages_lib.SCRATCH}
  moved = np.vectorize(places.__getitem__, otypes=[np.int32])
  return (
    _copies([(x, places[x]) for x in sorted(old)], segments.tables.size),
    dataclasses.replace(
      segments, tables=moved(segments.tables), writes=moved(segments.writes)
    ),
    _copies([(places[x], x) for x in sorted(new)], segments.writes.size),
  )


def _copies(pairs: Sequence[tuple[int, int]], most: int) -> pages_lib.Copies:
  """Lays pairs of pages out as host arrays, then unused ones."""
  out = np.full((most, 2), pages_lib.SCRATCH, np.int32)
  out[: len(pairs)] = np.reshape(pairs, (-1, 2))
  return pages_lib.Copies(out, np.int32(len(pairs)))


def pack_rows(
  rows: Iterable[tuple[int, Row]],
  config: api.EngineConfig,
  reading: pages_lib.Reading = pages_lib.Reading(),
) -> decoding.Rows:
  """Lays rows out as host arrays, each in its place; the others are unused.

  Where pages are read, a row whose tail is not copied is told to be.

  Args:
    rows: rows of a lane, and their places in it.
    config: the shapes.
    reading: way in which they are decoded, and number of lanes.
  """
  rows = list(rows)
  places = config.slots // reading.lanes

  def column(fill, dtype, *shape):
    return np.full((places, *shape), fill, dtype)

  out = decoding.Rows(
    last=column(0, np.int32),
    positions=column(0, np.int32),
    sampled=column(0, np.int32),
    left=column(0, np.int32),
    tables=column(pages_lib.SCRATCH, np.int32, config.table_pages),
    stop_ids=column(decoding.NO_STOP, np.int32, config.max_stop_ids),
    sampling=sampling.RowSampling(
      temperature=column(0, np.float32),
      top_k=column(0, np.int32),
      top_p=column(1, np.float32),
      min_p=column(0, np.float32),
      key_words=column(0, np.uint32, 2),
    ),
    copies=_copies([], places),
    common=np.zeros((), np.int32),
    common_row=np.zeros((), np.int32),
  )
  copies = []
  for place, row in rows:
    request, spec = row.request, row.request.sampling
    out.last[place] = row.ids[-1] if row.ids else request.prompt_ids[-1]
    out.positions[place] = len(request.prompt_ids) - 1 + len(row.ids)
    out.sampled[place] = len(row.ids)
    out.left[place] = spec.max_new_tokens - len(row.ids)
    out.stop_ids[place, : len(request.stop_ids)] = request.stop_ids
    for name in ('temperature', 'top_p', 'min_p'):
      getattr(out.sampling, name)[place] = getattr(spec, name)
    # More than any vocabulary has keeps all.
    out.sampling.top_k[place] = min(spec.top_k, np.iinfo(np.int32).max)
    out.sampling.key_words[place] = request.key_words
    if reading.way == 'gathered':
      continue
    table = row.lease.table()
    out.tables[place, : len(table)] = table
    if not row.is_copied and row.lease.tail is not None:
      copies.append((row.lease.tail.page, row.lease.own[0]))
  out = dataclasses.replace(out, copies=_copies(copies, places))
  if not (rows and reading.shares):
    return out
  return dataclasses.replace(
    out,
    common=np.int32(_common_parts([row for _, row in rows], config)),
    common_row=np.int32(rows[0][0]),
  )


def _common_parts(rows: Sequence[Row], config: api.EngineConfig) -> int:
  """Returns how many parts, see gathered, all rows have in common."""
  size = gathered.PART // config.page_tokens
  # A part that takes new tokens is no row's but its own.
  most = min(len(row.request.prompt_ids) - 1 for row in rows) // gathered.PART
  first = rows[0].lease.nodes
  for j in range(most * size):
    if any(row.lease.nodes[j] is not first[j] for row in rows):
      return j // size
  return most


def pack_fresh(
  rows: Iterable[tuple[int, Row]], config: api.EngineConfig, reading: pages_lib.Reading
) -> gathered.Fresh:
  """Lays out the pages of rows of a lane that are to be gathered."""
  places = config.slots // reading.lanes
  fresh = gathered.Fresh(
    tables=np.full((places, config.table_pages), pages_lib.SCRATCH, np.int32),
    rows=np.zeros((places,), np.int32),
    count=np.zeros((), np.int32),
  )
  count = 0
  for place, row in rows:
    table = [node.page for node in row.lease.nodes]
    fresh.tables[place, : len(table)] = table
    fresh.rows[count] = place
    count += 1
  return dataclasses.replace(fresh, count=np.int32(count))


def finish(row: Row, done: bool) -> tuple[int, str] | None:
  """Says whether a row has ended, and how.

  Args:
    row: row with at least one token.
    done: whether the device saw a stop id or the last token asked for.

  Returns:
    How many ids to keep and 'stop' or 'length'; None while the row goes on.

  Raises:
    ValueError: stop_fn keeps an impossible number of ids.
    FloatingPointError: a log probability is not finite.
    Exception: whatever stop_fn raises.
  """
  request, ids = row.request, row.ids
  while row.finite < len(ids) and math.isfinite(row.logprobs[row.finite]):
    row.finite += 1
  is_finite = row.finite == len(ids)
  ids = ids[: row.finite]  # Nobody is shown what was drawn from there on.
  keep = None
  if request.stop_fn is not None and ids:
    keep = request.stop_fn(ids)
  if keep is not None and not 1 <= keep <= len(ids):
    raise ValueError(f'stop_fn keeps {keep} of {len(ids)} ids')
  if keep is None and not is_finite:
    raise FloatingPointError('log probabilities are not finite')
  if keep is None and not done:
    return None
  at_stop = keep is not None or ids[-1] in request.stop_ids
  return keep or len(ids), 'stop' if at_stop else 'length'
