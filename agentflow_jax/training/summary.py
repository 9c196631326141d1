"""Results of a run: summary.json, and accuracy.json beside its planner."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.config import overrides, schema
from agentflow_jax.files import writing
from agentflow_jax.rollouts import evaluation_files, intervals, totals, waits

_FILE = 'summary.json'


def write(
  config: schema.Config,
  workdir: epath.Path,
  lines: Sequence[Mapping[str, Any]],
  seconds: Mapping[str, float],
  more: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes summary.json: the run in one flat object.

  Args:
    config: config of the run.
    workdir: work directory, which holds the evaluations.
    lines: metrics of the run, one line a step.
    seconds: wall time by name.
    more: further entries.

  Returns:
    What was written.
  """
  summary: dict[str, Any] = {
    'config/name': config.name,
    'config/seed': config.seed,
    'config/algorithm': config.algorithm,
    'steps': len(lines),
  }
  rewards = {}
  for name, found in evaluation_files.read_all(workdir).items():
    rewards[name] = found.rewards
    key = (
      f'control/{name.removeprefix("control_")}'
      if name.startswith('control_')
      else f'eval/accuracy_{name}'
    )
    summary[key] = found.accuracy
    summary[f'{key}/ci_low'] = found.ci_low
    summary[f'{key}/ci_high'] = found.ci_high
    if math.isfinite(found.accuracy_over_requested):  # Older files lack it.
      summary[f'{key}/over_requested'] = found.accuracy_over_requested
    summary[f'{key}/items_requested'] = found.items_requested
    summary[f'{key}/items_scored'] = found.items_scored
    summary |= _flat(f'{key}/world', found.world)
    summary |= _flat(f'{key}/mistakes', found.mistakes)
  for suffix in ('', '_greedy'):
    gain = intervals.paired_gain(
      rewards.get(f'start{suffix}', ()), rewards.get(f'final{suffix}', ())
    )
    if gain is not None:
      names = ('', '/ci_low', '/ci_high', '/items')
      summary |= {f'eval/gain{suffix}{n}': v for n, v in zip(names, gain, strict=True)}
  names = ['rollouts/requested', 'rollouts/scored', 'rollouts/turns']
  names += [f'rollouts/status/{s.value}' for s in records.Status]
  sums = totals.over_steps(lines)
  summary |= {name: sums.get(name, 0) for name in names}
  # Not of the slowest rollouts: those are means.
  summary |= {
    name: value
    for name, value in sums.items()
    if name.startswith('seconds/') and not name.startswith(waits.PREFIX)
  }
  for name, value in seconds.items():
    summary.setdefault(f'seconds/{name}', value)
  if config.task_set.has_solutions:
    for field, value in overrides.flatten(config.teacher).items():
      summary[f'teacher/{field}'] = value
  allowed = config.agent.tools.web.allow
  if allowed:  # What its tools could reach that is not public.
    summary['config/agent.tools.web.allow'] = ', '.join(allowed)
  summary |= more
  text = json.dumps(summary, indent=1, sort_keys=True)
  writing.write_whole(workdir / _FILE, text + '\n')
  return summary


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested values by their paths."""
  found = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      found |= _flat(f'{prefix}/{name}', value)
    else:
      found[f'{prefix}/{name}'] = value
  return found


def write_card(directory: epath.Path, summary: Mapping[str, Any]) -> None:
  """Writes accuracy.json beside a planner: what it scored, and its digest."""
  shown = ('config/', 'control/', 'eval/', 'teacher/', 'params_digest', 'steps')
  card = {k: v for k, v in summary.items() if k.startswith(shown)}
  text = json.dumps(card, indent=1, sort_keys=True)
  writing.write_whole(directory / 'accuracy.json', text + '\n')
