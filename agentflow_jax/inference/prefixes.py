"""Which pages hold which tokens: a tree of prompts, and what is free.

A node is a page of a prompt, and its path from the root the tokens before it.
Requests lease nodes; pages of nodes that nobody leases stay until the room is
needed, least recently used first. Plain Python, for the engine's thread alone.
"""

from collections.abc import Sequence
import dataclasses
import heapq
import itertools

# Page 0 is pages.SCRATCH: never given out.
_FIRST_PAGE = 1


@dataclasses.dataclass(eq=False)
class Node:
  """A page of a prompt.

  Attributes:
    ids: its tokens: a whole page's, or fewer at a prompt's end. The page of
      fewer is shared by being copied, since its reader writes on behind them.
    page: number of the page that holds them.
    ready: whether their keys and values have been computed.
    leases: number of requests that need it.
  """

  ids: tuple[int, ...]
  page: int
  parent: 'Node | None'
  ready: bool = False
  leases: int = 0
  last_used: int = 0
  children: dict[tuple[int, ...], 'Node'] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Lease:
  """The pages of one request.

  Attributes:
    nodes: nodes of the prompt without its last token, in order.
    own: pages of what follows the last whole one of them, in order.
    hits: number of tokens whose pages were ready, or on their way, when it was made.
    page_tokens: P.
  """

  nodes: list[Node]
  own: list[int]
  hits: int
  page_tokens: int

  @property
  def tail(self) -> Node | None:
    """The node whose page is to be copied to the first of `own`."""
    if self.nodes and len(self.nodes[-1].ids) < self.page_tokens:
      return self.nodes[-1]
    return None

  def table(self) -> list[int]:
    """Pages of the request's slots, in order, once the tail is copied."""
    whole = self.nodes[:-1] if self.tail else self.nodes
    return [node.page for node in whole] + self.own


class Prefixes:
  """A pool's pages, and the tree of what they hold.

  Attributes:
    evicted: pages whose tokens were forgotten to make room, so far.
  """

  def __init__(self, pages: int, page_tokens: int, share: bool = True):
    """All pages are free.

    Args:
      pages: N, page 0 included, which is never given out.
      page_tokens: P.
      share: False to share nothing: every request computes its own.
    """
    self._pages, self._page_tokens, self._share = pages, page_tokens, share
    self.evicted = 0
    self.clear()

  def clear(self) -> None:
    """Forgets everything. Nothing may be leased."""
    self._root = Node((), 0, None, ready=True)
    self._free = list(range(self._pages - 1, _FIRST_PAGE - 1, -1))
    self._held = 0  # Pages that leases need.
    self._clock = itertools.count(1)
    # Nodes without leases or children, by last use; entries may be stale.
    self._idle: list[tuple[int, int, Node]] = []
    self._order = itertools.count()

  @property
  def free(self) -> int:
    """Pages that hold nothing."""
    return len(self._free)

  @property
  def held(self) -> int:
    """Pages that leases need; what is neither these nor free is kept in case."""
    return self._held

  def _own(self, read: int, new_tokens: int | None) -> int:
    if new_tokens is None:
      return 0
    # The last new token is never read, so it has no slot.
    slots = read + new_tokens - read // self._page_tokens * self._page_tokens
    return -(-slots // self._page_tokens)

  def lease(self, prompt: Sequence[int], new_tokens: int | None) -> Lease | None:
    """Finds or reserves every page that a request may need.

    Args:
      prompt: its ids; the last is not read ahead, and no part of a node.
      new_tokens: largest number of tokens that it may sample; None where they are kept
        elsewhere.

    Returns:
      None where there is no room now.
    """
    read, size = len(prompt) - 1, self._page_tokens
    pieces = [tuple(prompt[i : min(i + size, read)]) for i in range(0, read, size)]
    nodes, now = [], next(self._clock)
    node = self._root if self._share else Node((), 0, None)
    for piece in pieces:
      if piece not in node.children:
        break
      node = node.children[piece]
      nodes.append(node)
    for found in nodes:  # So that none of them is evicted.
      self._held += not found.leases
      found.leases += 1
      found.last_used = now
    missing = pieces[len(nodes) :]
    n_own = self._own(read, new_tokens)
    if not self._make_room(len(missing) + n_own):
      self._give_back(nodes)
      return None
    hits = sum(len(found.ids) for found in nodes)
    for piece in missing:
      child = Node(piece, self._free.pop(), node, leases=1, last_used=now)
      node.children[piece] = child
      nodes.append(child)
      node = child
    own = [self._free.pop() for _ in range(n_own)]
    self._held += len(missing) + n_own
    return Lease(nodes, own, hits, size)

  def release(self, lease: Lease) -> None:
    """Gives back a lease, once. What was computed stays, while there is room."""
    self._free.extend(lease.own)
    self._held -= len(lease.own)
    self._give_back(lease.nodes)
    lease.nodes, lease.own = [], []

  def _give_back(self, nodes: Sequence[Node]) -> None:
    for node in reversed(nodes):
      node.leases -= 1
      self._held -= not node.leases
      if node.leases or node.children:
        continue
      if self._share and node.ready:
        self._is_idle(node)
      else:
        self._forget(node)

  def _is_idle(self, node: Node) -> None:
    heapq.heappush(self._idle, (node.last_used, next(self._order), node))
    if len(self._idle) > 2 * self._pages:  # Half of it, or more, is stale.
      self._idle = [entry for entry in self._idle if _is_valid(entry)]
      heapq.heapify(self._idle)

  def _forget(self, node: Node) -> None:
    assert node.parent is not None  # The root is never forgotten.
    del node.parent.children[node.ids]
    self._free.append(node.page)

  def _make_room(self, pages: int) -> bool:
    """Evicts until so many pages are free, or nothing if they cannot be."""
    if self._pages - _FIRST_PAGE - self._held < pages:
      return False
    while len(self._free) < pages:
      entry = heapq.heappop(self._idle)
      if not _is_valid(entry):
        continue  # Used since; it comes back when that ends.
      node = entry[2]
      self.evicted += 1
      self._forget(node)
      parent = node.parent
      if parent and parent is not self._root and not (parent.leases or parent.children):
        self._is_idle(parent)
    return True


def _is_valid(entry: tuple[int, int, Node]) -> bool:
  used, _, node = entry
  return not (node.leases or node.children) and used == node.last_used
