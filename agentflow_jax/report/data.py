"""What the report reads: the machine-readable files of a work directory.

Only files, never logs, and whatever is absent is simply absent: a run that was
stopped early has no final evaluation, an SFT run no rollouts. A file that is
there but cannot be read is an error that names it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from agentflow_jax.files import old_names, reading
from agentflow_jax.rollouts import evaluation_files, totals


class ReportError(reading.FileError):
  """There is nothing to report, or a file of the work directory is broken."""


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
  evaluations: Mapping[str, evaluation_files.EvaluationFile]
  summary: Mapping[str, Any]

  def series(self, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, where it is there and finite."""
    pairs = [(line['step'], reading.number(line.get(key))) for line in self.metrics]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]

  def totals(self, prefix: str, nested: bool = False) -> dict[str, float]:
    """Sums over all steps of the metrics '<prefix><name>', by name.

    Args:
      prefix: beginning of the metrics' names.
      nested: whether names that hold a further '/' count; otherwise they are
        parts of others and left out.
    """
    return totals.over_steps(self.metrics, prefix, nested)

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
    evaluations=_load_evaluations(workdir),
    summary=old_names.metrics(_load_object(workdir / 'summary.json')),
  )
  if not run.metrics and not run.evaluations:
    raise ReportError(
      f'{workdir}: nothing to report: metrics.jsonl holds no finished step '
      'and evaluations/ no .json file'
    )
  return run


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


def _load_evaluations(
  workdir: epath.Path,
) -> dict[str, evaluation_files.EvaluationFile]:
  try:
    return evaluation_files.read_all(workdir)
  except reading.FileError as e:
    raise ReportError(str(e)) from e


def _load_object(path: epath.Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  with reading.boundary(path, ReportError):
    # Python writes NaN where nothing was scored.
    value = reading.read_json(path, allows_nan=True)
  if not isinstance(value, dict):
    raise ReportError(f'{path}: not a JSON object')
  return value
