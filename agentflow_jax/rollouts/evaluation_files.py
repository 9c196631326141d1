"""Files of evaluations: their one schema, for those that write and those that read.

WORKDIR/evaluations/NAME.json is an object of figures, which holds the rollouts below
'items'. What a file lacks, because an earlier version wrote it, reads as nan, 0 or
nothing.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from agentflow_jax.files import old_names, reading, writing
from agentflow_jax.rollouts import evaluated_items

DIRECTORY = 'evaluations'  # Of a workdir.
_END = '.json'


@dataclasses.dataclass(frozen=True)
class Slice:
  """Accuracies over the tasks that share a tag, see EvaluationFile."""

  items: int
  accuracy: float
  items_requested: int = 0
  accuracy_over_requested: float = math.nan


@dataclasses.dataclass(frozen=True)
class Judged:
  """Figures by a judge; in a file their names begin with 'judge_'.

  Attributes:
    accuracy: mean over the tasks of which a rollout was judged; None without any.
    accuracy_over_requested: mean over all tasks.
    ci_low, ci_high: 95% interval of `accuracy` over tasks.
    items: number of the tasks of which a rollout was judged.
    unknown: number of rollouts that the judge could not judge.
    differs_from_rule: (task id, trial) of the rollouts that the rule scored otherwise.
  """

  accuracy: float | None = None
  accuracy_over_requested: float = math.nan
  ci_low: float = math.nan
  ci_high: float = math.nan
  items: int = 0
  unknown: int = 0
  differs_from_rule: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class EvaluationFile:
  """What the file of an evaluation holds, in its order.

  Attributes:
    name: name of the evaluation and of its file.
    split: split of its tasks.
    temperature: temperature of the planner's sampling.
    accuracy: mean over tasks of the mean reward of their scored rollouts.
    ci_low, ci_high: 95% interval of `accuracy` over tasks.
    accuracy_over_requested: mean over all tasks, where a rollout without a reward
      counts as 0.
    items_requested, items_scored: number of tasks, and of those with a scored rollout.
    rollouts_requested, rollouts_scored: number of rollouts, and of scored ones.
    status: number of rollouts by status.
    by_hops, by_kind: accuracies by a tag of the tasks.
    tools: number of calls by tool.
    tool_error_rate: share of calls that failed.
    tool_counts: sums of what calls counted, by name.
    turns_mean: mean number of turns of a rollout.
    planner_tokens_mean: mean number of tokens that the planner wrote in a rollout.
    seconds_a_rollout: mean wall time of a rollout [s].
    seconds: wall time of the evaluation [s].
    mistakes: totals of mistakes.of_groups.
    world: totals of world_totals.of_groups; empty without worlds.
    judged: figures by a judge; None where none was asked.
    items: rollouts, by task and trial.
    more: further entries, of the command: costs and usage of endpoints, `config`,
      'protocol', 'trials', `items_left_out`, and tables of its options.
  """

  name: str
  split: str = ''
  temperature: float = math.nan
  accuracy: float = math.nan
  ci_low: float = math.nan
  ci_high: float = math.nan
  accuracy_over_requested: float = math.nan
  items_requested: int = 0
  items_scored: int = 0
  rollouts_requested: int = 0
  rollouts_scored: int = 0
  status: Mapping[str, int] = dataclasses.field(default_factory=dict)
  by_hops: Mapping[str, Slice] = dataclasses.field(default_factory=dict)
  by_kind: Mapping[str, Slice] = dataclasses.field(default_factory=dict)
  tools: Mapping[str, int] = dataclasses.field(default_factory=dict)
  tool_error_rate: float = math.nan
  tool_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  turns_mean: float = math.nan
  planner_tokens_mean: float = math.nan
  seconds_a_rollout: float = math.nan
  seconds: float = math.nan
  mistakes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  world: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  judged: Judged | None = None
  items: tuple[evaluated_items.Item, ...] = ()
  more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def config(self) -> dict[str, Any]:
    """Fields of the config by dotted name; empty where they are not told."""
    return dict(self.more.get('config') or {})

  @property
  def items_left_out(self) -> int:
    """Number of tasks that were left out because they need more than text."""
    return self.more.get('items_left_out', 0)

  @property
  def rollouts(self) -> int:
    """Number of rollouts that were asked for, scored or not."""
    return sum(self.status.values()) or len(self.items)

  @property
  def unscored(self) -> int:
    """Number of rollouts without a reward; they are in no denominator."""
    return sum(item.reward is None for item in self.items)

  @property
  def figures(self) -> dict[str, float]:
    """Numbers of the file by name, as far as they are known."""
    return {
      name: value
      for name, value in self.to_json().items()
      if math.isfinite(reading.number(value))
    }

  @property
  def rewards(self) -> list[tuple[str, float | None]]:
    """Pairs of a rollout's task id and its reward."""
    return [(item.id, item.reward) for item in self.items]

  def to_json(self) -> dict[str, Any]:
    """Returns the content of the file."""
    found: dict[str, Any] = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ('world', 'judged', 'items', 'more')
    }
    for name in ('by_hops', 'by_kind'):
      found[name] = {k: dataclasses.asdict(one) for k, one in found[name].items()}
    if self.world:
      found['world'] = self.world
    if self.judged is not None:
      of_judge = dataclasses.asdict(self.judged)
      found |= {_OF_JUDGE[name]: value for name, value in of_judge.items()}
    found['items'] = [item.to_json() for item in self.items]
    return found | dict(self.more)

  @classmethod
  def from_json(cls, name: str, raw: Mapping[str, Any]) -> 'EvaluationFile':
    """Reads the content of a file; what is broken raises as in reading.boundary.

    Args:
      name: name of the file.
      raw: content of the file, with the names of today.
    """
    figure = lambda name: reading.number(raw.get(name))
    count = lambda name: reading.whole(raw.get(name))
    return cls(
      name=name,
      split=reading.text(raw.get('split')),
      temperature=figure('temperature'),
      accuracy=figure('accuracy'),
      ci_low=figure('ci_low'),
      ci_high=figure('ci_high'),
      accuracy_over_requested=figure('accuracy_over_requested'),
      items_requested=count('items_requested'),
      items_scored=count('items_scored'),
      rollouts_requested=count('rollouts_requested'),
      rollouts_scored=count('rollouts_scored'),
      status=_counts(raw.get('status')),
      by_hops=_slices(raw.get('by_hops')),
      by_kind=_slices(raw.get('by_kind')),
      tools=_counts(raw.get('tools')),
      tool_error_rate=figure('tool_error_rate'),
      tool_counts=_counts(raw.get('tool_counts')),
      turns_mean=figure('turns_mean'),
      planner_tokens_mean=figure('planner_tokens_mean'),
      seconds_a_rollout=figure('seconds_a_rollout'),
      seconds=figure('seconds'),
      mistakes=dict(raw.get('mistakes') or {}),
      world=dict(raw.get('world') or {}),
      judged=_judged(raw),
      items=tuple(map(evaluated_items.Item.read, raw.get('items') or ())),
      more={key: value for key, value in raw.items() if key not in _KNOWN},
    )


_OF_JUDGE = {f.name: f'judge_{f.name}' for f in dataclasses.fields(Judged)}
_KNOWN = {f.name for f in dataclasses.fields(EvaluationFile)} | {*_OF_JUDGE.values()}


def _counts(raw: Mapping[str, Any] | None) -> dict[str, int]:
  return {name: int(count) for name, count in (raw or {}).items() if count}


def _slices(raw: Mapping[str, Any] | None) -> dict[str, Slice]:
  return {
    value: Slice(
      int(part['items']),
      reading.number(part.get('accuracy')),
      reading.whole(part.get('items_requested')),
      reading.number(part.get('accuracy_over_requested')),
    )
    for value, part in (raw or {}).items()
    if part.get('items')
  }


def _judged(raw: Mapping[str, Any]) -> Judged | None:
  """Returns a judge's figures; None where the file has none."""
  found = {name: raw.get(key) for name, key in _OF_JUDGE.items()}
  if all(value is None for value in found.values()):
    return None
  accuracy = found['accuracy']
  return Judged(
    accuracy=None if accuracy is None else reading.number(accuracy),
    accuracy_over_requested=reading.number(found['accuracy_over_requested']),
    ci_low=reading.number(found['ci_low']),
    ci_high=reading.number(found['ci_high']),
    items=reading.whole(found['items']),
    unknown=reading.whole(found['unknown']),
    differs_from_rule=tuple(
      (i, trial) for i, trial in found['differs_from_rule'] or ()
    ),
  )


def write(workdir: epath.Path, file: EvaluationFile) -> epath.Path:
  """Writes a file, whole or not at all, and returns its path.

  Args:
    workdir: work directory; what is missing of the path is created.
    file: content.
  """
  path = path_of(workdir, file.name)
  writing.write_whole(path, json.dumps(file.to_json(), indent=1))
  return path


def path_of(workdir: epath.Path, name: str) -> epath.Path:
  """Returns the path of an evaluation's file."""
  return workdir / DIRECTORY / f'{name}{_END}'


def read(path: epath.Path) -> EvaluationFile:
  """Reads a file.

  Raises:
    FileError: it is no file of an evaluation; names it.
  """
  with reading.boundary(path):
    # Python writes NaN where nothing was scored.
    raw = reading.read_json(path, allows_nan=True)
    if not isinstance(raw, dict):
      raise reading.FileError(f'{path}: not a JSON object')
    name = path.name.removesuffix(_END)
    return EvaluationFile.from_json(name, old_names.evaluation(raw))


def read_all(workdir: epath.Path) -> dict[str, EvaluationFile]:
  """Reads the files of a work directory, by name in alphabetical order.

  Raises:
    FileError: one of them is no file of an evaluation; names it.
  """
  directory = workdir / DIRECTORY
  if not directory.exists():
    return {}
  paths = [path for path in directory.iterdir() if path.name.endswith(_END)]
  files = map(read, sorted(paths, key=lambda path: path.name))
  return {file.name: file for file in files}
