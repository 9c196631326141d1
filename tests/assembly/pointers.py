"""Where the arrays of parameters lie in memory, for tests of what is copied."""

import jax


def of(tree):
  """Returns name -> where its parts lie, of every parameter."""
  return {
    jax.tree_util.keystr(path): tuple(
      shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def are_apart(*trees):
  """Says whether no part of any tree lies where another one does."""
  found = [at for tree in trees for parts in tree.values() for at in parts]
  return len(found) == len(set(found))
