"""The order of training tasks, as pure functions of the seed and the step."""

import fractions
import functools
import math
import random
from collections.abc import Sequence

from agentflow_jax.assembly import task_sets


def epoch_indices(total: int, seed: int | str, step: int, count: int) -> list[int]:
  """Indices of one step's items: each epoch is a new permutation of all.

  A pure function of its arguments, so a data cursor is the step number.

  Args:
    total: items in an epoch.
    seed: the run's, or what names another sequence of it.
    step: number of the step, from 0.
    count: items a step.
  """
  places = range(step * count, (step + 1) * count)
  return [_order(total, seed, p // total)[p % total] for p in places]


@functools.lru_cache(maxsize=8)  # Of 100,000 items each takes 4 MiB, 50 ms.
def _order(total: int, seed: int | str, epoch: int) -> tuple[int, ...]:
  """The permutation of an epoch."""
  order = list(range(total))
  random.Random(f'{seed}/epoch/{epoch}').shuffle(order)
  return tuple(order)


def mixture_indices(
  parts: Sequence[task_sets.Part], seed: int | str, step: int, count: int
) -> list[int]:
  """Indices of one step's items, of several sources by their weights.

  Sources take turns as `source_order` says, over all steps as if they were one; each
  goes through epochs of its own, so that a small one starts its next while a
  large one is in its first. A pure function of its arguments, as epoch_indices.

  Args:
    parts: the sources, in the order in which their items lie.
    seed: the run's, or what names another sequence of it.
    step: number of the step, from 0.
    count: items a step.
  """
  common = math.gcd(*(p.weight for p in parts))
  weights = tuple(p.weight // common for p in parts)
  period = source_order(weights)
  rounds, start = divmod(step * count, len(period))
  # Of each source: what it gave before this step, and where its items start.
  given = [rounds * w + period[:start].count(i) for i, w in enumerate(weights)]
  offsets = [sum(p.items for p in parts[:i]) for i in range(len(parts))]
  chosen = []
  for place in range(start, start + count):
    i = period[place % len(period)]
    part = parts[i]
    epoch, at = divmod(given[i], part.items)
    order = _order(part.items, f'{seed}/{part.source}', epoch)
    chosen.append(offsets[i] + order[at])
    given[i] += 1
  return chosen


@functools.lru_cache(maxsize=8)
def source_order(weights: tuple[int, ...]) -> tuple[int, ...]:
  """Which source comes when, for one period of sum(weights) places.

  Tijdeman's chairman assignment (Discrete Math. 32, 1980): after any n places
  of k sources, the count of each is within 1 - 1/(2k - 2) of its share of n, and
  no order does better for all weights. Of two sources every window holds its
  share rounded up or down.

  At place n the sources whose deficit n w / W - given is at least 1/(2k - 2) may
  come, and the one comes whose deficit will be the first to reach the bound.
  All is times (2k - 2) W here, so that it is exact.

  Args:
    weights: weight of each source; positive integers without a common divisor.
  """
  total, k = sum(weights), len(weights)
  if k == 1:
    return (0,) * total
  scale = 2 * k - 2
  given, order = [0] * k, []
  for n in range(1, total + 1):
    deficits = [scale * (n * w - total * x) for w, x in zip(weights, given)]
    due = [i for i in range(k) if deficits[i] >= total]
    chosen = min(
      due,
      key=lambda i: fractions.Fraction((scale - 1) * total - deficits[i], weights[i]),
    )
    given[chosen] += 1
    order.append(chosen)
  return tuple(order)
