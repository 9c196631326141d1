"""What the report reads: the machine-readable files of a work directory.

Only files, never logs, and whatever is absent is simply absent: a run that was
stopped early has no final evaluation, an SFT run no rollouts. A file that is
there but cannot be read is an error that names it.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from agentflow_jax.files import old_names, reading


class ReportError(reading.FileError):
  """There is nothing to report, or a file of the work directory is broken."""


@dataclasses.dataclass(frozen=True)
class ItemCall:
  """A further call of a response that makes several, as text for people."""

  tool: str
  arguments: Mapping[str, Any]
  result: str
  failed: bool


@dataclasses.dataclass(frozen=True)
class ItemTurn:
  """One planner turn of an evaluated question, as text for people."""

  planner: str
  parse_error: str
  tool: str
  arguments: Mapping[str, Any]
  result: str
  failed: bool
  verdict: str
  more: tuple[ItemCall, ...] = ()


@dataclasses.dataclass(frozen=True)
class Item:
  """One evaluated question; reward is None where it was not scored."""

  id: str
  query: str
  gold: str
  answer: str
  reward: float | None
  status: str
  detail: str
  hops: str
  turns: tuple[ItemTurn, ...]
  changed: tuple[str, ...] = ()
  violations: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slice:
  """Accuracy over the scored items that share a tag."""

  items: int
  accuracy: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evaluations/<name>.json; figures that it lacks are nan."""

  name: str
  split: str
  temperature: float
  accuracy: float
  ci_low: float
  ci_high: float
  status: Mapping[str, int]
  by_hops: Mapping[str, Slice]
  tools: Mapping[str, int]
  accuracy_over_requested: float
  tool_error_rate: float
  turns_mean: float
  items: tuple[Item, ...]
  world: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  mistakes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def rollouts(self) -> int:
    """Rollouts asked for, scored or not."""
    return sum(self.status.values()) or len(self.items)

  @property
  def unscored(self) -> int:
    """Rollouts without a reward; they are in no denominator."""
    return sum(item.reward is None for item in self.items)


@dataclasses.dataclass(frozen=True)
class Run:
  """A work directory's results.

  Attributes:
    name: last component of the work directory.
    metrics: lines of metrics.jsonl by ascending step, one a step.
    evaluations: evaluations by name ('start', 'final', 'control_oracle_planner', ...).
    summary: summary.json, flat; empty where it is absent.
  """

  name: str
  metrics: tuple[Mapping[str, Any], ...]
  evaluations: Mapping[str, Evaluation]
  summary: Mapping[str, Any]

  def series(self, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, where it is there and finite."""
    pairs = [(line['step'], number(line.get(key))) for line in self.metrics]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]

  def totals(self, prefix: str, nested: bool = False) -> dict[str, float]:
    """Sums over all steps of the metrics '<prefix><name>', by name.

    Args:
      prefix: beginning of the metrics' names.
      nested: whether names that hold a further '/' count; otherwise they are
        parts of others and left out.
    """
    sums: Any = collections.Counter()
    for line in self.metrics:
      for key, value in line.items():
        name = key.removeprefix(prefix)
        if name == key or ('/' in name and not nested):
          continue
        if math.isfinite(number(value)):
          sums[name] += number(value)
    return dict(sums)

  def facts(self, prefix: str) -> dict[str, Any]:
    """The summary's entries '<prefix><name>', by name."""
    return {
      key.removeprefix(prefix): value
      for key, value in self.summary.items()
      if key.startswith(prefix)
    }


def load(workdir: epath.PathLike) -> Run:
  """Reads the results of a work directory (a local or a gs:// path).

  Raises:
    ReportError: neither a training step nor an evaluation is there, or a file
      is not what docs/design.md says it is. A torn last line of metrics.jsonl (the
      run was killed while writing it) is dropped.
  """
  workdir = epath.Path(workdir)
  run = Run(
    name=workdir.name,
    metrics=_load_metrics(workdir / 'metrics.jsonl'),
    evaluations=_load_evaluations(workdir / 'evaluations'),
    summary=old_names.metrics(_load_object(workdir / 'summary.json')),
  )
  if not run.metrics and not run.evaluations:
    raise ReportError(
      f'{workdir}: nothing to report: metrics.jsonl holds no finished step '
      'and evaluations/ no .json file'
    )
  return run


def number(value: Any) -> float:
  """A JSON number as float; nan for null, for text and for what is absent."""
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value)
  return math.nan


def _load_metrics(path: epath.Path) -> tuple[Mapping[str, Any], ...]:
  if not path.exists():
    return ()
  by_step = {}
  with reading.boundary(path, ReportError):
    lines = list(reading.json_lines(path, may_be_torn=True, allows_nan=True))
  for line in lines:
    entry = line.value
    if not isinstance(entry, dict) or not isinstance(entry.get('step'), int):
      raise ReportError(f'{line.where}: no object with an integer step')
    # A step counts once: lines of one step (its evaluation's, or those of a
    # second try after a resume) are merged, and the later value holds.
    by_step.setdefault(entry['step'], {}).update(old_names.metrics(entry))
  return tuple(by_step[step] for step in sorted(by_step))


def _load_evaluations(folder: epath.Path) -> dict[str, Evaluation]:
  if not folder.exists():
    return {}
  paths = sorted(p for p in folder.iterdir() if p.name.endswith('.json'))
  found = {}
  for path in paths:
    with reading.boundary(path, ReportError):
      found[path.stem] = _evaluation(
        path.stem, old_names.evaluation(_load_object(path))
      )
  return found


def _load_object(path: epath.Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  with reading.boundary(path, ReportError):
    # Python writes NaN where nothing was scored.
    value = reading.read_json(path, allows_nan=True)
  if not isinstance(value, dict):
    raise ReportError(f'{path}: not a JSON object')
  return value


def _evaluation(name: str, raw: Mapping[str, Any]) -> Evaluation:
  return Evaluation(
    name=name,
    split=_text(raw.get('split')),
    temperature=number(raw.get('temperature')),
    accuracy=number(raw.get('accuracy')),
    ci_low=number(raw.get('ci_low')),
    ci_high=number(raw.get('ci_high')),
    status=_counts(raw.get('status')),
    by_hops={
      hops: Slice(int(part['items']), number(part.get('accuracy')))
      for hops, part in (raw.get('by_hops') or {}).items()
      if part.get('items')
    },
    tools=_counts(raw.get('tools')),
    accuracy_over_requested=number(raw.get('accuracy_over_requested')),
    tool_error_rate=number(raw.get('tool_error_rate')),
    turns_mean=number(raw.get('turns_mean')),
    items=tuple(_item(item) for item in raw.get('items') or ()),
    world=dict(raw.get('world') or {}),
    mistakes=dict(raw.get('mistakes') or {}),
  )


def _item(raw: Mapping[str, Any]) -> Item:
  reward = number(raw.get('reward'))
  return Item(
    id=_text(raw.get('id')),
    query=_text(raw.get('query')),
    gold=_text(raw.get('gold')),
    answer=_text(raw.get('answer')),
    reward=reward if math.isfinite(reward) else None,
    status=_text(raw.get('status')),
    detail=_text(raw.get('detail')),
    hops=_text((raw.get('tags') or {}).get('hops')),
    turns=tuple(
      ItemTurn(
        planner=_text(turn.get('planner')),
        parse_error=_text(turn.get('parse_error')),
        **_call(turn),
        verdict=_text(turn.get('verdict')),
        more=tuple(ItemCall(**_call(one)) for one in turn.get('more') or ()),
      )
      for turn in raw.get('turns') or ()
    ),
    changed=tuple(map(_text, raw.get('changed') or ())),
    violations=tuple(map(_text, raw.get('violations') or ())),
  )


def _call(raw: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'tool': _text(raw.get('tool')),
    'arguments': dict(raw.get('arguments') or {}),
    'result': _text(raw.get('result')),
    'failed': bool(raw.get('failed')),
  }


def _counts(raw: Mapping[str, Any] | None) -> dict[str, int]:
  return {name: int(count) for name, count in (raw or {}).items() if count}


def _text(value: Any) -> str:
  """Text as it is; a list of acceptable answers joined; null as nothing."""
  if value is None:
    return ''
  if isinstance(value, (list, tuple)):
    return ' | '.join(_text(part) for part in value)
  return str(value)
