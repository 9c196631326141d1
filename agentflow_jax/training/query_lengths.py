"""Counts queries that do not fit into the planner's prompt, before any is asked."""

import dataclasses
from collections.abc import Sequence

from agentflow_jax import records
from agentflow_jax.agents import language_model, memory, modules
from agentflow_jax.agents.tools import base


@dataclasses.dataclass(frozen=True)
class QueryLengths:
  """Lengths of the queries of some tasks.

  Attributes:
    queries: number of queries.
    too_long: number of queries whose first prompt is longer than `limit`, even
      without an analysis, so that all their rollouts end prompt_too_long.
    longest: length of the longest query [tokens], without the rest of the prompt.
    limit: planner.max_prompt_tokens [tokens].
  """

  queries: int = 0
  too_long: int = 0
  longest: int = 0
  limit: int = 0

  def said(self) -> str:
    """Returns in words how many queries do not fit."""
    return (
      f'{self.too_long} of {self.queries} queries do not fit into'
      f' planner.max_prompt_tokens={self.limit:,}: the longest query has'
      f' {self.longest:,} tokens'
    )


def measure(
  planner: modules.ModelPlanner,
  cards: tuple[base.Card, ...],
  tasks: Sequence[records.Task],
  start_memory: memory.Start = memory.start,
  world_cards: tuple[base.Card, ...] = (),
) -> QueryLengths:
  """Measures the queries of tasks, as they stand in prompts.

  The policy of a task's world and the cards of its tools are part of the prompt.

  A query has at most as many tokens as bytes, so that most queries need no
  tokenizer. The tokens of the others and those of the prompt around them are counted
  apart, which may differ by a few tokens from the whole prompt; prompts near the
  limit are composed.

  Args:
    planner: planner that the queries are for.
    cards: cards of its tools, which stand in the prompt.
    tasks: tasks to measure.
    start_memory: function that makes the memory of a rollout, see rollout.Agent.
    world_cards: cards of the tools that worlds bring; empty where they are unknown.
  """
  groups: dict[tuple, list[records.Task]] = {}
  for task in tasks:
    world = task.world
    key = () if world is None else (world.policy, world.tools)
    groups.setdefault(key, []).append(task)
  found = []
  for key, some in groups.items():
    policy, names = key or ('', ())
    shown = [c for c in world_cards if key and (not names or c.name in names)]
    found.append(_of_prompts(planner, (*cards, *shown), some, start_memory, policy))
  return QueryLengths(
    queries=len(tasks),
    too_long=sum(part.too_long for part in found),
    longest=max((part.longest for part in found), default=0),
    limit=planner.max_prompt_tokens,
  )


def _of_prompts(planner, cards, tasks, start_memory, policy) -> QueryLengths:
  """Measures queries whose prompts have the same cards and the same policy."""
  limit = planner.max_prompt_tokens
  shown = [start_memory(task.query).query for task in tasks]
  queries = set(shown)

  def whole(query: str) -> int:
    state = memory.Memory(query, policy=policy)
    return planner.count_tokens(cards, state)

  count = language_model.text_counter(planner.model)
  by_size = sorted(queries, key=_bytes, reverse=True)
  around = whole(by_size[-1]) - count(by_size[-1])
  lengths = {
    query: count(query)
    for i, query in enumerate(by_size)
    if i < _ALWAYS or _bytes(query) + around + _NEAR > limit
  }

  def fits(query: str) -> bool:
    room = limit - around - lengths[query]
    return (limit - whole(query) if abs(room) <= _NEAR else room) >= 0

  unfit = {query for query in lengths if not fits(query)}
  return QueryLengths(
    queries=len(tasks),
    too_long=sum(query in unfit for query in shown),
    longest=max(lengths.values()),
    limit=limit,
  )


# Tokens by which the two ways to count may differ, and more.
_NEAR = 8
# Queries that are measured in any case, so that the longest is known.
_ALWAYS = 100


def _bytes(text: str) -> int:
  return len(text.encode('utf-8', 'surrogatepass'))
