"""The evaluations around a run: before, during, after, and the controls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.assembly import scripted_planners, system
from agentflow_jax.config import overrides, schema
from agentflow_jax.evaluation import evaluate
from agentflow_jax.files import reading, writing
from agentflow_jax.runtime import progress

SUMMARY = 'summary.json'
_DIRECTORY = 'evaluations'


class Evaluations:
  """Evaluates on the test tasks before and after, on validation in between."""

  def __init__(
      self,
      parts: system.System,
      workdir: epath.Path,
      bar: progress.Progress,
      clock: Any,
  ):
    self.workdir = workdir
    self._parts = parts
    self._bar = bar
    self._clock = clock

  async def start(self) -> None:
    """The planner that training starts from, on the test tasks."""
    if self._parts.config.evaluation.start_and_final:
      with self._clock('evaluate_start'):
        await self._test('start')
        await self._test('start_greedy', greedy=True)

  async def during(self) -> dict[str, float]:
    """The current planner on the validation tasks, sampled and greedy."""
    parts = self._parts
    metrics = {}
    with self._clock('evaluate'):
      for suffix, greedy in (('', False), ('_greedy', True)):
        result = await evaluate.evaluate(
            parts.agent,
            parts.tasks.validation,
            name=f'validation_{parts.engine.params_version}',
            split='validation',
            seed=parts.config.seed,
            processes=parts.processes,
            greedy=greedy,
            concurrent=parts.config.train.concurrent_rollouts,
        )
        low, high = result.interval()
        metrics |= {
            f'eval/items_requested{suffix}': len(result.groups),
            f'eval/items_scored{suffix}': len(result.scores),
            f'eval/accuracy_over_requested{suffix}': (
                result.accuracy_over_requested
            ),
        }
        if result.scores:
          metrics |= {
              f'eval/accuracy{suffix}': result.accuracy,
              f'eval/accuracy{suffix}_ci_low': low,
              f'eval/accuracy{suffix}_ci_high': high,
          }
    return metrics

  async def final(self, start_params: Any, params: Any) -> None:
    """The trained planner and the controls, on the test tasks.

    Args:
      start_params: what training started from, for the frozen control.
      params: what the engine samples from before and after.
    """
    config = self._parts.config.evaluation
    if config.start_and_final:
      with self._clock('evaluate_final'):
        await self._test('final')
        await self._test('final_greedy', greedy=True)
    if config.controls:
      with self._clock('controls'):
        scripts = {'empty': scripted_planners.empty}
        if self._parts.config.task_set.kind == 'geohop':
          # Only there are the steps known, and what a random plan may say.
          scripts |= {'oracle': scripted_planners.oracle, 'random': scripted_planners.uniform}
        for name, script in scripts.items():
          agent = self._parts.with_script(script)
          await self._test(f'control_{name}_planner', agent=agent)
        version = self._parts.engine.params_version
        self._parts.sample_from(start_params, 0)
        await self._test('control_frozen_planner')
        self._parts.sample_from(params, version)

  async def _test(
      self,
      name: str,
      agent: rollout.Agent | None = None,
      greedy: bool = False,
  ) -> None:
    parts = self._parts
    result = await evaluate.evaluate(
        agent or parts.agent,
        parts.tasks.test,
        name=name,
        split='test',
        seed=parts.config.seed,
        processes=parts.processes,
        trials=1 if greedy else parts.config.evaluation.trials,
        greedy=greedy,
        concurrent=parts.config.train.concurrent_rollouts,
    )
    if parts.processes.is_primary:
      evaluate.save(self.workdir / _DIRECTORY, result)
    self._bar.note(
        f'{name}: {result.accuracy:.1%} of {len(result.scores)} scored and'
        f' {result.accuracy_over_requested:.1%} of {len(result.groups)} requested'
        f' test tasks ({result.seconds:.0f} s)'
    )


def write_summary(
    config: schema.Config,
    workdir: epath.Path,
    lines: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    more: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes summary.json: the run in one flat object.

  Args:
    config: the run's.
    workdir: where its evaluations are.
    lines: its metrics, one a step.
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
  for name, path in _evaluation_files(workdir):
    value = reading.read_json(path, allows_nan=True)
    key = (
        f'control/{name.removeprefix("control_")}'
        if name.startswith('control_')
        else f'eval/accuracy_{name}'
    )
    summary[key] = value['accuracy']
    summary[f'{key}/ci_low'] = value['ci_low']
    summary[f'{key}/ci_high'] = value['ci_high']
    if 'accuracy_over_requested' in value:  # Older files lack it.
      summary[f'{key}/over_requested'] = value['accuracy_over_requested']
    summary[f'{key}/items_requested'] = value['items_requested']
    summary[f'{key}/items_scored'] = value['items_scored']
  names = ['rollouts/requested', 'rollouts/scored', 'rollouts/turns']
  names += [f'rollouts/status/{s.value}' for s in records.Status]
  for name in names:
    summary[name] = sum(line.get(name, 0) for line in lines)
  stepwise = {k for line in lines for k in line if k.startswith('seconds/')}
  for name in sorted(stepwise):
    summary[name] = sum(line.get(name, 0.0) for line in lines)
  for name, value in seconds.items():
    summary.setdefault(f'seconds/{name}', value)
  if config.task_set.kind == 'geohop':
    for field, value in overrides.flatten(config.teacher).items():
      summary[f'teacher/{field}'] = value
  allowed = config.agent.tools.web.allow
  if allowed:  # What its tools could reach that is not public.
    summary['config/agent.tools.web.allow'] = ', '.join(allowed)
  summary |= more
  text = json.dumps(summary, indent=1, sort_keys=True)
  writing.write_whole(workdir / SUMMARY, text + '\n')
  return summary


def write_card(directory: epath.Path, summary: Mapping[str, Any]) -> None:
  """Writes accuracy.json beside a planner: what it scored, and its digest."""
  kept = ('config/', 'control/', 'eval/', 'teacher/', 'params_digest', 'steps')
  card = {k: v for k, v in summary.items() if k.startswith(kept)}
  text = json.dumps(card, indent=1, sort_keys=True)
  writing.write_whole(directory / 'accuracy.json', text + '\n')


def _evaluation_files(workdir: epath.Path):
  directory = workdir / _DIRECTORY
  if not directory.exists():
    return []
  paths = sorted(directory.glob('*.json'), key=lambda p: p.name)
  return [(p.name.removesuffix('.json'), p) for p in paths]
