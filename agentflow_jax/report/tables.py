"""The report's figures in words: the table of accuracies, gain and checks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from agentflow_jax.files import reading
from agentflow_jax.report import data, plots
from agentflow_jax.rollouts import evaluation_files, intervals

CONFIDENCE = 0.95

# Planner -> the summary's keys of its sampled and its greedy accuracy, for
# where the evaluation's own file is gone.
_SUMMARY_KEYS = {
  'final': ('eval/accuracy_final', 'eval/accuracy_final_greedy'),
  'start': ('eval/accuracy_start', 'eval/accuracy_start_greedy'),
  'control_oracle_planner': ('control/oracle_planner', ''),
  'control_frozen_planner': ('control/frozen_planner', ''),
  'control_blind_planner': ('control/blind_planner', ''),
  'control_refusing_planner': ('control/refusing_planner', ''),
  'control_random_planner': ('control/random_planner', ''),
  'control_empty_planner': ('control/empty_planner', ''),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean in [0, 1] and its 95% interval; nan where unknown.

  Attributes:
    mean: mean over the scored items.
    low: lower end of its interval.
    high: upper end of its interval.
    over_requested: mean over all requested items, where an unscored rollout
      counts as 0.
  """

  mean: float = math.nan
  low: float = math.nan
  high: float = math.nan
  over_requested: float = math.nan

  def __bool__(self) -> bool:
    return math.isfinite(self.mean)

  @property
  def has_interval(self) -> bool:
    return math.isfinite(self.low) and math.isfinite(self.high)

  def apart_from(self, other: 'Estimate') -> bool:
    """Whether the two intervals do not touch."""
    return self.low > other.high or self.high < other.low

  @property
  def point(self) -> str:
    """The mean, and the mean over all requested items where it differs."""
    return f'{percent(self.mean)}{self._over_requested()}'

  def _over_requested(self) -> str:
    # Both are sums over the same items: where all were scored they are equal.
    if not math.isfinite(self.over_requested) or math.isclose(
      self.over_requested, self.mean, abs_tol=1e-12
    ):
      return ''
    return f' ({percent(self.over_requested)} over all requested)'

  def __str__(self) -> str:
    if not self:
      return '-'
    if not self.has_interval:
      return self.point
    ends = f'{100 * self.low:.1f}, {100 * self.high:.1f}'
    return f'{percent(self.mean)} [{ends}]{self._over_requested()}'


@dataclasses.dataclass(frozen=True)
class Row:
  """A planner's line of the table."""

  name: str
  label: str
  sampled: Estimate
  greedy: Estimate
  evaluation: evaluation_files.EvaluationFile | None


@dataclasses.dataclass(frozen=True)
class Gain:
  """Accuracy after minus before, paired over the same questions."""

  difference: Estimate
  questions: int


def percent(value: float) -> str:
  return f'{100 * value:.1f}%' if math.isfinite(value) else '-'


def rows(run: data.Run) -> list[Row]:
  """Planners that the run has an accuracy of, best expected first."""
  found = []
  for name, (label, _) in plots.PLANNERS.items():
    sampled_key, greedy_key = _SUMMARY_KEYS[name]
    row = Row(
      name=name,
      label=label,
      sampled=_estimate(run, name, sampled_key),
      greedy=_estimate(run, f'{name}_greedy', greedy_key),
      evaluation=run.evaluations.get(name) or run.evaluations.get(f'{name}_greedy'),
    )
    if row.sampled or row.greedy:
      found.append(row)
  return found


def gain(run: data.Run, suffix: str = '') -> Gain | None:
  """The gain from 'start' to 'final', over questions scored in both.

  Args:
    run: a run.
    suffix: '' for the sampled evaluations, '_greedy' for the greedy ones.

  Returns:
    None where no question was scored both times.
  """

  def rewards(name):
    evaluation = run.evaluations.get(name + suffix)
    return evaluation.rewards if evaluation else ()

  found = intervals.paired_gain(rewards('start'), rewards('final'), CONFIDENCE)
  if found is None:
    return None
  mean, low, high, questions = found
  return Gain(Estimate(mean, low, high), questions)


def checks(run: data.Run) -> list[tuple[bool, str]]:
  """What has to hold if the figures are to be believed, and whether it does."""
  found = []
  table = {row.name: row for row in rows(run)}
  final = table.get('final')
  starts = table.get('start')
  if final and starts:
    better = max((e for e in (starts.sampled, starts.greedy) if e), key=_mean)
    points = 100 * (final.sampled.mean - better.mean)
    if math.isfinite(points):
      found.append(
        (
          points > 0,
          f'the trained planner (sampled) stands {abs(points):.1f} points '
          f'{"above" if points > 0 else "below"} the better of the two starts '
          '(sampled or greedy)',
        )
      )
  frozen = table.get('control_frozen_planner')
  if frozen and starts and frozen.sampled and starts.sampled:
    found.append(
      (
        frozen.sampled.mean == starts.sampled.mean,
        'the frozen planner, evaluated once more, equals the start exactly',
      )
    )
  found += _control_checks(table)
  found += _count_checks(run)
  return found


def _control_checks(table: Mapping[str, Row]) -> list[tuple[bool, str]]:
  found = []
  final = table.get('final')
  for name in ('control_frozen_planner', 'control_random_planner'):
    control = table.get(name)
    if final and control and final.sampled.has_interval:
      if control.sampled.has_interval:
        found.append(
          (
            final.sampled.apart_from(control.sampled),
            f'the interval of the trained planner lies apart from that of the '
            f'{control.label}',
          )
        )
  oracle = table.get('control_oracle_planner')
  if oracle and oracle.sampled:
    found.append(
      (
        oracle.sampled.mean >= 0.98,
        f'the oracle planner reaches {percent(oracle.sampled.mean)} (below 98% '
        'the task would be broken)',
      )
    )
  empty = table.get('control_empty_planner')
  if empty and empty.sampled:
    found.append(
      (
        empty.sampled.mean <= 0.05,
        f'the empty planner reaches {percent(empty.sampled.mean)} (above 5% '
        'the task would not need a planner)',
      )
    )
  return found


def _count_checks(run: data.Run) -> list[tuple[bool, str]]:
  found = []
  requested = int(run.totals('rollouts/').get('requested', 0))
  ended = int(sum(run.totals('rollouts/status/').values()))
  if requested:
    found.append(
      (
        requested == ended,
        f'{ended:,} training rollouts ended with a status, of {requested:,} requested',
      )
    )
  compiles = reading.number(run.summary.get('compiles/after_warmup'))
  if math.isfinite(compiles):
    found.append(
      (compiles == 0, f'{compiles:.0f} programs were compiled after the warm-up')
    )
  return found


def terminal(run: data.Run) -> str:
  """The table in plain ASCII, a line a planner, and the gain below it."""
  cells = [['planner', 'sampled', 'greedy', 'rollouts']]
  for row in rows(run):
    rollouts = str(row.evaluation.rollouts) if row.evaluation else '-'
    cells.append([row.label, str(row.sampled), str(row.greedy), rollouts])
  lines = []
  if len(cells) > 1:
    lines += columns(cells)
    lines.append('accuracy with its 95% interval over questions')
  found = gain(run)
  if found:
    lines.append(f'gain, sampled: {gain_text(found)}')
  if run.metrics:
    line = f'training: last step {run.metrics[-1]["step"]}'
    requested = int(run.totals('rollouts/').get('requested', 0))
    lines.append(f'{line}, {requested:,} rollouts' if requested else line)
  return '\n'.join(lines) + '\n'


def gain_text(found: Gain) -> str:
  """A gain in points with its interval."""
  d = found.difference
  return (
    f'{100 * d.mean:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}], '
    f'paired over {found.questions} questions'
  )


def columns(cells: Sequence[Sequence[str]]) -> list[str]:
  """Returns aligned lines; the first row is the header."""
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = []
  for i, row in enumerate(cells):
    parts = [row[0].ljust(widths[0])]
    parts += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    lines.append('  '.join(parts))
    if i == 0:
      lines.append('  '.join('-' * w for w in widths))
  return lines


def _mean(estimate: Estimate) -> float:
  return estimate.mean


def _estimate(run: data.Run, name: str, key: str) -> Estimate:
  evaluation = run.evaluations.get(name)
  if evaluation and math.isfinite(evaluation.accuracy):
    return Estimate(
      evaluation.accuracy,
      evaluation.ci_low,
      evaluation.ci_high,
      evaluation.accuracy_over_requested,
    )
  return Estimate(
    reading.number(run.summary.get(key)),
    over_requested=reading.number(run.summary.get(f'{key}/over_requested')),
  )
