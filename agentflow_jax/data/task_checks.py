"""Checks tasks when they are read, before anything runs."""

import re
import unicodedata
from collections.abc import Sequence

from agentflow_jax import records

_LONE_SURROGATE = re.compile('[\ud800-\udfff]')


def checked(task: records.Task) -> records.Task:
  """Returns a task that has a query and whose texts all have a UTF-8 form.

  A lone surrogate is half of a UTF-16 pair. JSON can spell one (a text that was
  cut in the middle of an emoji), but no tokenizer and no server takes it.

  Raises:
    ValueError: the query is empty, or a text holds a lone surrogate; names the field
      and the place.
  """
  texts = {'id': task.id, 'query': task.query}
  texts |= {f'answer {i}': text for i, text in enumerate(task.answers, 1)}
  for name, text in texts.items():
    if found := _LONE_SURROGATE.search(text):
      raise ValueError(
        f'the {name} of task {task.id.encode("ascii", "replace").decode()}'
        f' holds a lone surrogate (U+{ord(found[0]):04X}, at character'
        f' {found.start() + 1}), which has no UTF-8 form; delete or repair it'
      )
  if not task.query.strip():
    raise ValueError(f'the query of task {task.id} is empty')
  return task


def overlap(
  train: Sequence[records.Task], held_out: Sequence[records.Task]
) -> list[tuple[records.Task, records.Task]]:
  """Finds the evaluation tasks whose query is trained on.

  Queries are compared without case, without differences of white space, and
  in Unicode's compatibility form (NFKC).

  Args:
    train: training tasks.
    held_out: evaluation tasks.

  Returns:
    A (training task, evaluation task) pair for each evaluation task that is
    found, in their order; of equal training tasks the first.
  """
  trained: dict[str, records.Task] = {}
  for task in train:
    trained.setdefault(_normal(task.query), task)
  return [
    (trained[_normal(task.query)], task)
    for task in held_out
    if _normal(task.query) in trained
  ]


def _normal(query: str) -> str:
  return ' '.join(unicodedata.normalize('NFKC', query).casefold().split())
