"""What prompts share, what makes room, and that no page is lost or held twice."""

import random

import pytest

from agentflow_jax.inference import prefixes

P = 4


def _ready(lease):
  for node in lease.nodes:
    node.ready = True
  return lease


def _shape(lease):
  return [len(node.ids) for node in lease.nodes], len(lease.own), lease.hits


def test_a_prompt_is_cut_into_pages_before_its_last_token():
  tree = prefixes.Prefixes(20, P)
  # 10 tokens: 9 are read, 2 pages and 1 token. Slots 8 to 12 are its own: the
  # copy of that one, the last of the prompt, and 3 of the 4 new ones.
  lease = tree.lease(range(10), 4)
  assert _shape(lease) == ([4, 4, 1], 2, 0)
  assert lease.tail is lease.nodes[2]
  pages = [node.page for node in lease.nodes]
  assert lease.table() == pages[:2] + lease.own
  assert tree.free == 19 - 5
  # A whole number of pages is read: nothing to copy.
  lease = tree.lease(range(100, 109), 1)
  assert _shape(lease) == ([4, 4], 1, 0)
  assert lease.tail is None
  # Nothing to read.
  lease = tree.lease([7], 5)
  assert _shape(lease) == ([], 2, 0)
  assert lease.table() == lease.own


def test_new_tokens_that_are_kept_elsewhere_take_no_page():
  tree = prefixes.Prefixes(4, P)
  lease = tree.lease(range(12), None)  # Of which 11 are read.
  assert _shape(lease) == ([4, 4, 3], 0, 0) and tree.free == 0
  tree.release(lease)
  assert tree.lease(range(12), 1) is None


def test_prompts_share_the_pages_that_they_begin_with():
  tree = prefixes.Prefixes(30, P)
  first = tree.lease(range(10), 1)
  # Before it is read, too: what two wait for is read once.
  twin = tree.lease(range(10), 1)
  assert twin.nodes == first.nodes and twin.hits == 9
  assert not set(twin.own) & set(first.own)
  longer = tree.lease([*range(8), 50, 51, 52, 53, 54], 1)
  assert longer.nodes[:2] == first.nodes[:2] and longer.hits == 8
  other = tree.lease([50, 51, 52, 53, 54], 1)  # The same page elsewhere.
  assert other.hits == 0


def test_nothing_is_shared_where_it_is_not_wanted():
  tree = prefixes.Prefixes(30, P, share=False)
  first = _ready(tree.lease(range(10), 1))
  assert tree.lease(range(10), 1).hits == 0
  tree.release(first)
  assert tree.lease(range(10), 1).hits == 0


def test_what_was_read_stays_and_the_longest_unused_goes_first():
  tree = prefixes.Prefixes(9, P)  # 8 pages.
  for start in (0, 100):  # 2 pages of nodes and 1 of their own, each.
    tree.release(_ready(tree.lease(range(start, start + 9), 1)))
  assert tree.free == 4
  tree.release(tree.lease(range(9), 1))  # Used again, though not the newest.
  lease = tree.lease(range(200, 217), 1)  # 4 and 1: one page is missing.
  assert (tree.free, tree.evicted) == (0, 1)
  tree.release(lease)  # Was never read, so nothing of it stays.
  assert tree.free == 5
  # Of 100 to 108 the second page was taken: a page goes after what follows it.
  lease = tree.lease(range(100, 109), 1)
  assert lease.hits == 4
  tree.release(lease)
  assert tree.lease(range(9), 1).hits == 8


def test_where_there_is_no_room_nothing_changes():
  tree = prefixes.Prefixes(7, P)  # 6 pages.
  held = tree.lease(range(9), 1)
  _ready(held)
  tree.release(_ready(tree.lease([*range(8), 60], 1)))
  assert tree.lease(range(200, 217), 1) is None
  assert tree.free == 3
  assert tree.lease(range(9), 8) is not None  # 2 shared and 2 of its own.


def test_who_finds_no_room_evicts_nothing():
  tree = prefixes.Prefixes(9, P)  # 8 pages.
  tree.lease(range(100, 109), 1)  # 3 of them.
  tree.release(_ready(tree.lease(range(9), 1)))  # 2 stay.
  assert tree.lease(range(200, 221), 1) is None  # Asks for 6.
  assert tree.evicted == 0
  assert tree.lease(range(9), 1).hits == 8


def test_a_reader_that_leaves_before_it_has_read_leaves_the_rest_to_others():
  tree = prefixes.Prefixes(20, P)
  first = tree.lease(range(12), 1)
  second = tree.lease([*range(8), 90, 91, 92, 93, 94], 1)
  first.nodes[0].ready = True
  tree.release(first)
  assert [node.ready for node in second.nodes] == [True, False, False]
  assert tree.lease(range(12), 1).hits == 8


@pytest.mark.parametrize('share', [True, False])
def test_no_page_is_lost_or_held_twice(share):
  rng = random.Random(3)
  tree = prefixes.Prefixes(40, P, share)
  held, holds, refused = [], {}, 0
  for _ in range(4000):
    if held and rng.random() < 0.5:
      tree.release(held.pop(rng.randrange(len(held))))
    else:
      # Few different tokens: many prefixes in common.
      prompt = [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
      lease = tree.lease(prompt, rng.randrange(1, 9))
      if lease is None:
        refused += 1
        continue
      held.append(lease)
      before = ()
      for node in lease.nodes:
        if node.ready:  # Its page still holds what was read into it.
          assert holds[node.page] == (before, node.ids)
        elif rng.random() < 0.7:
          holds[node.page] = before, node.ids
          node.ready = True
        else:
          break
        before += node.ids
    nodes = {node.page: node for lease in held for node in lease.nodes}
    own = [page for lease in held for page in lease.own]
    assert len(set(own)) == len(own) and not set(own) & nodes.keys()
    assert 0 not in own and 0 not in nodes
    for page in own:
      holds.pop(page, None)
    # What is neither free nor held by a request is kept in the tree.
    assert tree.free + len(own) + len(nodes) <= 39
  assert refused > 50 and (tree.evicted > 200) == share
  for lease in held:
    tree.release(lease)
  # Whatever stayed can be evicted: all pages are to be had.
  assert tree.lease(range(1000, 1145), 12) is not None  # 36 and 3.
  assert tree.free == 0
