"""Says in words why a run cannot learn, from the metrics of its steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.config import remedies, schema
from agentflow_jax.training import query_lengths

_LATE = f'rollouts/status/{records.Status.ABORTED_LATE.value}'


def failed_as(line: Mapping[str, Any]) -> records.Status | None:
  """Returns the status in which every rollout of a step failed, if there is one.

  A step did not fail if a rollout was rewarded, or if a group has two different
  rewards, so that it can be learned from. Rollouts that were aborted as late do not
  count.

  Args:
    line: metrics of the step.
  """
  ended = line.get('rollouts/requested', 0) - line.get(_LATE, 0)
  if not ended or line.get('reward/mean', 0.0) > 0 or not _has_equal_rewards(line):
    return None
  for status in records.Status:
    if line.get(f'rollouts/status/{status.value}') == ended:
      is_failing = status not in (
        records.Status.ANSWERED,
        records.Status.REFUSED,
        records.Status.ABORTED_LATE,
      )
      return status if is_failing else None
  return None


def _has_equal_rewards(line: Mapping[str, Any]) -> bool:
  """Returns whether no group of a step has two rollouts with different rewards."""
  return line['groups/no_variance'] == line['groups/requested']


def _taught_nothing(line: Mapping[str, Any]) -> bool:
  """Returns whether no group that a step trained on has different rewards."""
  return _has_equal_rewards(line) and not line.get('queue/reused')


def failing_steps(lines: Sequence[Mapping[str, Any]]) -> int:
  """Returns how many of the last steps failed in one and the same status."""
  count, last = 0, None
  for line in reversed(lines):
    status = failed_as(line)
    if status is None or last not in (None, status):
      break
    count, last = count + 1, status
  return count


def of_step(
  line: Mapping[str, Any], config: schema.Config, lengths: query_lengths.QueryLengths
) -> list[str]:
  """Returns a warning for each reason why a step teaches nothing.

  Args:
    line: metrics of the step; of a supervised step there is no warning.
    config: config of the run.
    lengths: lengths of the training queries.
  """
  if not line.get('groups/requested'):
    return []
  found = []
  if _taught_nothing(line):
    found.append(
      f'in none of the {line["groups/requested"]} groups do two rollouts have'
      ' different rewards, so there is nothing to learn from (mean reward'
      f' {line.get("reward/mean", 0.0):g})'
    )
  status = failed_as(line)
  if status is not None:
    found.append(_all_failed(line, status, config, lengths))
  return found


def of_run(
  lines: Sequence[Mapping[str, Any]],
  config: schema.Config,
  lengths: query_lengths.QueryLengths,
) -> list[str]:
  """Returns the warnings of a whole run, for its summary and its report.

  Args:
    lines: metrics of its steps.
    config: config of the run.
    lengths: lengths of the training queries.
  """
  sampled = [line for line in lines if line.get('groups/requested')]
  equal = [line for line in sampled if _taught_nothing(line)]
  found = []
  if equal:
    found.append(
      f'In {len(equal)} of {len(sampled)} steps no group had two rollouts with'
      ' different rewards, so these steps taught nothing.'
    )
  failed = [line for line in sampled if failed_as(line) is not None]
  if failed:
    last = failed[-1]
    said = _all_failed(last, failed_as(last), config, lengths)
    found.append(
      f'In {len(failed)} of {len(sampled)} steps every rollout failed in one way.'
      f' Step {last["step"]}: {said}.'
    )
  if lengths.too_long:
    found.append(f'{lengths.said()}.')
  return found


def _all_failed(line, status, config, lengths) -> str:
  count = line[f'rollouts/status/{status.value}']
  said = f'{count} of {line["rollouts/requested"]} rollouts ended {status.value}'
  if remedy := remedies.of_status(status, config, lengths.longest):
    said += f': {remedy}'
  return (
    f'{said} (python -m agentflow_jax.trajectories --status={status.value} shows'
    ' these rollouts)'
  )
