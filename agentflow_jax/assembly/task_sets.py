"""The tasks of a run: GeoHop, a benchmark, a mix, or a user's own JSONL files."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import plan as plan_lib
from agentflow_jax.agents.environments.own import environment as own
from agentflow_jax.assembly import desk_data, enterpriseops_data
from agentflow_jax.config import own_code, schema
from agentflow_jax.data import benchmarks, geohop, hub, mixtures, rows
from agentflow_jax.data import task_checks
from agentflow_jax.files import reading


@dataclasses.dataclass(frozen=True)
class Part:
  """Consecutive training tasks that are one source of a mix.

  Attributes:
    source: its name.
    items: number of its tasks.
    weight: its share of the queries is weight / sum of weights.
  """

  source: str
  items: int
  weight: int


@dataclasses.dataclass(frozen=True)
class TaskSet:
  """Tasks by split, and the corpus that comes with them.

  Attributes:
    train: tasks that are trained on, in a fixed order.
    validation: tasks that evaluations during training ask.
    test: tasks that evaluations before and after training ask.
    corpus: path of the corpus of search; '' where the set brings none.
    left_out: benchmark -> its items that need more than text.
    mixture: parts of `train`, in its order; empty where it is no mix.
    worlds: directory of the seeds of the tasks' worlds; '' where they have none.
  """

  train: tuple[records.Task, ...]
  validation: tuple[records.Task, ...]
  test: tuple[records.Task, ...]
  corpus: str = ''
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
  mixture: tuple[Part, ...] = ()
  worlds: str = ''


def load(config: schema.TaskSetConfig, data_dir: str, environment: str = '') -> TaskSet:
  """Loads the configured tasks; GeoHop is written below `data_dir` first.

  Args:
    config: the task set.
    data_dir: directory that data sets are written to.
    environment: name of the environment that rows of one's own begin episodes of; ''
      without one.

  Raises:
    ConfigError: a missing or malformed file; names the line.
  """
  left_out, parts, corpus, worlds = {}, (), '', ''
  splits: dict[str, Any]
  mixed = config.kind == 'mixture'

  def own_rows(field):
    path = getattr(config, field)
    try:
      return read_jsonl(
        path, config.reward, environment, config.columns, config.revision
      )
    except schema.ConfigError as e:
      hint = '; the file of a benchmark needs task_set.benchmark' if mixed else ''
      raise schema.ConfigError(f'task_set.{field}: {e}{hint}') from e

  if config.kind == 'desk':
    directory = epath.Path(data_dir) / f'desk_{config.tier}'
    splits, worlds = desk_data.load(directory, config.tier, config.distractors)
    splits |= {s: [splits[s]] for s in ('validation', 'test')}
  elif config.kind == 'enterpriseops':
    splits = _enterpriseops(config)
  elif config.kind == 'geohop':
    corpus = geohop.prepare(data_dir)
    splits = {s: geohop.load(data_dir, s) for s in _SPLITS}
    splits |= {s: [splits[s]] for s in ('validation', 'test')}
  else:
    if not config.evaluation:
      raise schema.ConfigError(
        f'task_set.evaluation: give the file of task_set.kind={config.kind}'
      )
    if config.evaluates_own_rows:
      held_out = [own_rows('evaluation')]
    else:
      held_out, left_out = _benchmarks(config, data_dir)
    if mixed:
      train, parts = _mixture(config.mixture, data_dir)
    else:
      train = own_rows('train') if config.train else []
    _check_overlap(train, held_out, config)
    splits = {'train': train, 'validation': held_out, 'test': held_out}
  validation = _some(splits['validation'], config.validation_items)
  test = _some(splits['test'], config.test_items)
  return TaskSet(
    train=tuple(splits['train']),
    validation=tuple(validation),
    test=tuple(test),
    corpus=str(corpus),
    left_out=left_out,
    mixture=parts,
    worlds=str(worlds),
  )


def check_demonstrations(config: schema.Config, tasks: Sequence[records.Task]) -> None:
  """Raises ConfigError if algorithm=sft has no training task with a plan to learn."""
  if config.algorithm != 'sft' or not config.sft.is_scripted:
    return
  demonstrated = config.task_set.has_solutions or not tasks
  if not demonstrated and not any('plans' in t.tags for t in tasks):
    raise schema.ConfigError(
      'task_set.train: no row demonstrates a plan, and algorithm=sft learns from those:'
      ' give some rows "plans"; or set sft.rollouts to a run whose successes it learns'
      ' from, or sft.chats to a file of chats'
    )


def without_tasks(
  config: schema.TaskSetConfig, data_dir: str, reads_corpus: bool
) -> TaskSet:
  """Returns the corpus of a task set without its tasks, for a query of a user.

  Args:
    config: the task set.
    data_dir: directory that the corpus is written to.
    reads_corpus: whether anything reads the corpus; otherwise nothing is written.
  """
  corpus = ''
  if reads_corpus and config.kind == 'geohop':
    corpus = str(geohop.prepare_corpus(data_dir))
  return TaskSet(train=(), validation=(), test=(), corpus=corpus)


def _enterpriseops(config: schema.TaskSetConfig) -> dict[str, Any]:
  """Returns the tasks of EnterpriseOps-Gym by split."""
  if not config.evaluation:
    raise schema.ConfigError(
      'task_set.evaluation: give the rows or the directory of task files of'
      ' EnterpriseOps-Gym'
    )
  try:
    held_out = [enterpriseops_data.load(config.evaluation)]
    train = enterpriseops_data.load(config.train) if config.train else []
  except enterpriseops_data.MalformedTask as e:
    raise schema.ConfigError(f'task_set: {e}') from e
  _check_overlap(train, held_out, config)
  return {'train': train, 'validation': held_out, 'test': held_out}


_SPLITS = ('train', 'validation', 'test')
_FIELDS = ('query', 'answer', 'id', 'plans')  # Those of a task in a row.


def _check_overlap(
  train: Sequence[records.Task],
  held_out: Sequence[Sequence[records.Task]],
  config: schema.TaskSetConfig,
) -> None:
  """Warns of evaluation tasks whose query is trained on, or refuses them.

  Raises:
    ConfigError: there are such tasks in a benchmark, whose accuracy could then
      not be compared with published results.
  """
  tasks = [task for part in held_out for task in part]
  pairs = task_checks.overlap(train, tasks)
  if not pairs:
    return
  trained, asked = pairs[0]
  said = (
    f'task_set: {len(pairs)} of {len(tasks)} evaluation tasks have the query'
    f' of a training task (the first: {asked.id!r} has that of'
    f' {trained.id!r}: {asked.query[:80]!r})'
  )
  if not config.evaluates_own_rows:
    raise schema.ConfigError(
      f'{said}; take them out of the training tasks: a benchmark has to be held out'
    )
  logging.warning('%s: their accuracy says nothing about unseen tasks', said)


def _some(parts: Sequence[Sequence[records.Task]], items: int) -> list[records.Task]:
  """Returns the first items of every part; 0: all."""
  return [task for part in parts for task in part[: items or None]]


def _benchmarks(config, data_dir):
  """Returns each benchmark's tasks, and how many of its items are left out."""
  parts, left_out = [], {}
  try:
    for name in benchmarks.chosen(config.evaluation, config.benchmark):
      tasks, left_out[name] = benchmarks.load(data_dir, config.evaluation, name)
      parts.append(tasks)
  except benchmarks.MalformedItem as e:
    raise schema.ConfigError(f'task_set: {e}') from e
  return parts, left_out


def _mixture(
  config: schema.MixtureConfig, data_dir: str
) -> tuple[list[records.Task], tuple[Part, ...]]:
  """Returns the tasks of all sources that have a weight, and what they are."""
  train, parts = [], []
  for field in dataclasses.fields(config):
    if field.name == 'sources':
      continue
    source, where = getattr(config, field.name), f'task_set.mixture.{field.name}'
    if bool(source.path) != bool(source.weight):
      raise schema.ConfigError(f'{where}: give path and weight, or neither: {source}')
    if not source.weight:
      continue
    try:
      tasks = mixtures.load(data_dir, source.path, field.name)
    except rows.MalformedRow as e:
      raise schema.ConfigError(f'{where}: {e}') from e
    tasks = tasks[: source.items or None]
    train += tasks
    parts.append(Part(field.name, len(tasks), source.weight))
  for name, source in config.own().items():
    if not (source.path and source.weight):
      raise schema.ConfigError(
        f'task_set.mixture.sources: {name} needs a path and a weight: {source}'
      )
    try:
      tasks = _own_source(name, source)
    except schema.ConfigError as e:
      raise schema.ConfigError(f'task_set.mixture.sources: {name}: {e}') from e
    train += tasks
    parts.append(Part(name, len(tasks), source.weight))
  if not parts:
    raise schema.ConfigError(
      'task_set.mixture: no source has a weight; set'
      ' task_set.mixture.SOURCE.path and .weight, or task_set.mixture.sources'
    )
  return train, tuple(parts)


def _own_source(name: str, source: schema.OwnSourceConfig) -> list[records.Task]:
  """Returns the tasks of a source of a mix, named by their places in it."""
  tasks = read_jsonl(
    source.path,
    source.reward,
    columns=source.columns,
    revision=source.revision,
    items=source.items,
  )
  return [
    dataclasses.replace(task, id=f'{name}/{i:07d}', tags={**task.tags, 'source': name})
    for i, task in enumerate(tasks)
  ]


def read_jsonl(
  path: str,
  reward: str,
  environment: str = '',
  columns: Mapping[str, str] | None = None,
  revision: str = '',
  items: int = 0,
) -> list[records.Task]:
  """Reads tasks from a JSONL file, or from a data set by name.

  Args:
    path: path of rows of {"query", "answer" (text, number or a list of
      alternatives), optionally "id"}; blank lines are skipped. With a reward of
      one's own, "answer" may be left out. "plans" demonstrates the turns of a
      good rollout: a list of {"sub_goal", "context", "tool"}, of which "context"
      may be left out. Or hf://OWNER/NAME/SPLIT, see data.hub.
    reward: name of the reward that scores them.
    environment: name of the environment that all other fields of a row are for, and
      "answer" may then be left out; '' without one.
    columns: path of a column by the name of a field, see rows.picked; None or empty
      for rows as they are.
    revision: revision of a data set by name.
    items: number of rows that are read, from the first; 0 for all.

  Raises:
    ConfigError: missing, not JSON, or a row without its fields; names the line.
  """
  tasks, seen = [], set()
  stem = epath.Path(path).stem
  if path.startswith(hub.PREFIX):
    stem = path.removeprefix(hub.PREFIX).strip('/')
  found = _rows(path, columns or {}, revision)
  for where, number, row in itertools.islice(found, items or None):
    if not isinstance(row, dict):
      raise schema.ConfigError(f'{where}: a row must be a JSON object')
    if 'query' not in row:
      raise schema.ConfigError(f'{where}: the field "query" is missing')
    if not isinstance(row['query'], str):
      raise schema.ConfigError(f'{where}: "query" must be text')
    task_id = str(row.get('id', f'{stem}/{number:06d}'))
    try:
      # A reward or an environment of one's own may need none.
      needless = environment or own_code.is_own(reward)
      if 'answer' not in row and not needless:
        raise ValueError('the field "answer" is missing')
      answers = benchmarks.answers(row['answer']) if 'answer' in row else ()
      tags = {} if 'plans' not in row else {'plans': _plans(row['plans'])}
      tasks.append(
        task_checks.checked(
          records.Task(
            task_id,
            row['query'],
            answers,
            reward,
            tags,
            _own_world(row, environment) if environment else None,
          )
        )
      )
    except ValueError as e:
      raise schema.ConfigError(f'{where}: {e}') from e
    if task_id in seen:
      raise schema.ConfigError(f'{where}: the id {task_id!r} came before')
    seen.add(task_id)
  if not tasks:
    raise schema.ConfigError(f'{path} holds no task')
  return tasks


def _rows(
  path: str, columns: Mapping[str, str], revision: str
) -> Iterator[tuple[str, int, Any]]:
  """Yields (where, number from 1, row) of a JSONL file or a data set by name."""
  try:
    if path.startswith(hub.PREFIX):
      for number, (where, row) in enumerate(hub.read(path, columns, revision), 1):
        yield where, number, row
      return
    for line in reading.json_lines(path):
      row = line.value
      if columns and isinstance(row, dict):
        row = rows.picked(row, columns, line.where)
      yield line.where, line.number, row
  except FileNotFoundError:
    raise schema.ConfigError(f'no task file {path}') from None
  except (OSError, reading.FileError, rows.MalformedRow) as e:
    raise schema.ConfigError(str(e)) from e


def _own_world(row: Mapping[str, Any], environment: str) -> records.World:
  """Returns the world of a row: what it says besides the fields of a task."""
  rest = {k: v for k, v in row.items() if k not in _FIELDS}
  return records.World(environment, {'row': rest}, checks=(own.CHECK,))


def _plans(said: Any) -> str:
  """Returns demonstrated plans as JSON of their texts; raises ValueError."""
  if not isinstance(said, list) or not said:
    raise ValueError('"plans" must be a list of at least one plan')
  texts = []
  for one in said:
    try:
      texts.append(_plan(one))
    except plan_lib.PlanError as e:
      raise ValueError(f'{one!r} of "plans" cannot be read back: {e}') from e
  return json.dumps(texts)


def _plan(said: Any) -> str:
  """Returns the text of a demonstrated plan; raises ValueError and PlanError."""
  fields = said if isinstance(said, dict) else {}
  if 'code' in fields:
    fields = {'thought': ''} | fields
    wanted, words = {'thought', 'code'}, 'text "code", and may have "thought"'
  else:
    fields = {'context': ''} | fields
    wanted = {'sub_goal', 'context', 'tool'}
    words = 'texts "sub_goal" and "tool", and may have "context"'
  if fields.keys() != wanted or not all(isinstance(v, str) for v in fields.values()):
    raise ValueError(f'each of "plans" needs the {words}: {said!r}')
  if 'code' in fields:
    plan = plan_lib.Plan(fields['thought'], fields['code'], 'code')
    text = plan.render_code()
    same = plan_lib.parse_code(text, 'code') == plan
  else:
    plan = plan_lib.Plan(**fields)
    text = plan.render()
    same = plan_lib.parse(text, (plan.tool,)) == plan
  if not same:
    raise ValueError(f'{said!r} of "plans" reads back as another plan')
  return text


def of_query(query: str) -> records.Task:
  """Returns a task for a query whose answer is unknown; it has no reward.

  Raises:
    ValueError: the query is not valid text, see data.task_checks.
  """
  return task_checks.checked(records.Task('solve', query, (), ''))
