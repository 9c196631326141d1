"""The benchmarks that AgentFlow is measured on, as TFDS data sets of local files.

A file is JSON, a list of items with "query" and "answer". Answers differ between
benchmarks, and so does what a right one is:

  bamboogle, hotpotqa       a list of acceptable texts
  2wiki, musique            a text
  aime24, amc23             an integer
  gameof24                  a list of solutions; the numbers are what counts
  medqa                     the content of one of the options in the query
  gaia                      a text or a number; items with a file to look at
                            ("file_name") are left out, and counted
  gpqa                      one of "choices" ("A. ..."), which the query holds;
                            where "answer_idx" is a letter it has to agree
"""

import dataclasses
import hashlib
import os
import string
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.data import builders, task_checks
from agentflow_jax.files import reading

# Name -> the reward that scores it (agents.rewards).
REWARDS: Mapping[str, str] = {
  '2wiki': 'short_answer',
  'aime24': 'exact_number',
  'amc23': 'exact_number',
  'bamboogle': 'short_answer',
  'gaia': 'short_answer',
  'gameof24': 'game24',
  'gpqa': 'choice',
  'hotpotqa': 'short_answer',
  'medqa': 'choice',
  'musique': 'short_answer',
}


class MalformedItem(ValueError):
  """A file or an item of it is not what its benchmark's are; names it."""


def locate(path: str, benchmark: str) -> epath.Path:
  """Returns the file: `path`, or PATH/BENCHMARK/data.json of a directory.

  Raises:
    MalformedItem: no such benchmark, or no such file.
  """
  if benchmark not in REWARDS:
    raise MalformedItem(f'no benchmark {benchmark!r}; there are {", ".join(REWARDS)}')
  file = epath.Path(path)
  if file.is_dir():
    file = file / benchmark / 'data.json'
  if not file.exists():
    raise MalformedItem(f'{benchmark}: no file {file}')
  return file


def chosen(path: str, said: str) -> list[str]:
  """Returns the benchmarks that a comma list names; 'all': those PATH holds.

  Args:
    path: path of a file or a directory, see `locate`.
    said: the list.

  Raises:
    MalformedItem: a name that there is not or twice, several of one file, or
      none.
  """
  directory = epath.Path(path)
  names = said.split(',')
  if said == 'all':
    names = [n for n in REWARDS if (directory / n / 'data.json').exists()]
    if not names:
      raise MalformedItem(f'all: no NAME/data.json of a benchmark in {path}')
  for name in names:
    locate(path, name)
  if len(names) > 1 and not directory.is_dir():
    raise MalformedItem(f'{said}: {path} is one file, and these are several')
  if len(set(names)) < len(names):
    raise MalformedItem(f'{said}: a name comes twice')
  return names


def load(
  data_dir: str | os.PathLike[str], path: str, benchmark: str
) -> tuple[Sequence[records.Task], int]:
  """Reads a benchmark, in the order of its file; writes it below `data_dir` first.

  Args:
    data_dir: directory below which the data set is kept, by its file's digest.
    path: the file, or a directory that holds BENCHMARK/data.json.
    benchmark: a name in REWARDS.

  Returns:
    The tasks, and how many items were left out.

  Raises:
    MalformedItem: names the file and the item's index.
  """
  file = locate(path, benchmark)
  # Read here too: a malformed item is an error of ours, not one amid TFDS's.
  _, left_out = read(str(file), benchmark)
  digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
  # By digest, so that another file of that name is built anew.
  stored = builders.load(
    os.path.join(data_dir, f'{benchmark}_{digest}'),
    lambda: read(str(file), benchmark)[0],
  )
  # The rule is this program's, and not that of the one that stored them.
  return [dataclasses.replace(t, reward=REWARDS[benchmark]) for t in stored], left_out


def read(path: str, benchmark: str) -> tuple[list[records.Task], int]:
  """Reads a benchmark's file.

  Args:
    path: path of the file.
    benchmark: a name in REWARDS.

  Returns:
    The tasks, and how many items were left out: their indices, which are the
    ids' numbers, are missing.

  Raises:
    MalformedItem: names the file and the item's index.
  """
  with reading.boundary(path, MalformedItem):
    items = reading.read_json(path)
  if not isinstance(items, list) or not items:
    raise MalformedItem(f'{path}: needs a list of items')
  tasks = []
  for i, item in enumerate(items):
    try:
      task = _task(item, f'{benchmark}/{i:06d}', benchmark)
    except ValueError as e:
      raise MalformedItem(f'{path}: item {i}: {e}') from e
    if task is not None:
      tasks.append(task)
  if not tasks:
    raise MalformedItem(f'{path}: every item needs a file to look at')
  return tasks, len(items) - len(tasks)


def answers(value: Any) -> tuple[str, ...]:
  """Returns the acceptable answers that a text, a number or a list says.

  Raises:
    ValueError: it is none of them.
  """
  values = value if isinstance(value, list) else [value]
  if not values or any(
    isinstance(v, bool) or not isinstance(v, (str, int, float)) for v in values
  ):
    raise ValueError('"answer" must be text, a number, or a list of them')
  return tuple(map(str, values))


def _task(item: Any, name: str, benchmark: str) -> records.Task | None:
  """Returns an item's task, or None where it is left out; raises ValueError."""
  if not isinstance(item, dict):
    raise ValueError('not an object with "query" and "answer"')
  if 'query' not in item:
    raise ValueError('the field "query" is missing')
  query = item['query']
  if not isinstance(query, str) or not query.strip():
    raise ValueError('"query" must be a text')
  if benchmark == 'gaia' and item.get('file_name'):
    return None
  if benchmark == 'gpqa':
    right = (_choice(item),)
  else:
    if 'answer' not in item:
      raise ValueError('the field "answer" is missing')
    right = answers(item['answer'])
  tags = {
    tag: str(item[field])
    for field, tag in (('pid', 'pid'), ('Level', 'level'))
    if isinstance(item.get(field), (str, int))
  }
  tags['benchmark'] = benchmark
  return task_checks.checked(records.Task(name, query, right, REWARDS[benchmark], tags))


def _choice(item: Mapping[str, Any]) -> str:
  """Returns the letter of the right choice."""
  choices, answer = item.get('choices'), item.get('answer')
  letters = string.ascii_uppercase
  if (
    not isinstance(choices, list)
    or not 2 <= len(choices) <= len(letters)
    or not all(
      isinstance(c, str) and c.startswith(f'{x}. ') for c, x in zip(choices, letters)
    )
  ):
    raise ValueError('"choices" must be texts "A. ...", "B. ...", and so on')
  if answer not in choices:
    raise ValueError(f'"answer" {answer!r} is none of "choices"')
  letter = letters[choices.index(answer)]
  given = item.get('answer_idx')
  # A number may count from 0 or from 1.
  if isinstance(given, str) and given.isalpha() and given != letter:
    raise ValueError(
      f'"answer_idx" {given!r} and "answer" {answer!r} are different choices'
    )
  return letter
