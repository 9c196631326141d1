"""Scores of EnterpriseOps-Gym (arXiv 2603.13594): as published, and strict.

The published scripts keep the results of a run by the names of its verifiers, so of two
with one name the later counts; leave out verifiers that name a server which the task
has not; end with a division by zero, so with an error, where no result is left; and
average runs that failed with an error in as failures. The parity score does the same.
The strict score makes every check, fails those that cannot be made, asks for at least
one, and leaves out rollouts without a reward, which are counted beside it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.files import writing
from agentflow_jax.rollouts import intervals, waits

DIRECTORY = 'enterpriseops'


def run_of(
  task: records.Task, trajectory: records.Trajectory, number: int
) -> dict[str, Any]:
  """Returns a rollout as the published scripts write a run.

  Args:
    task: task of the rollout.
    trajectory: rollout.
    number: number of the run, from 1.
  """
  if trajectory.verdict is None or trajectory.reward is None:
    why = f'{trajectory.status.value}: {trajectory.detail}'
    return {'run_number': number, 'error': why, 'overall_success': False}
  names = {server['name'] for server in task.its_world.state['servers']}
  results = {
    check.name: {'passed': bool(result.passed), 'details': result.detail}
    for check, result in zip(task.its_world.checks, trajectory.verdict.results)
    if check.spec.get('gym_name') in (None, *names)
  }
  if not results:
    why = 'no check is left: the published script divides by their number'
    return {'run_number': number, 'error': why, 'overall_success': False}
  passed = sum(result['passed'] for result in results.values())
  calls = [
    (call, result)
    for turn in trajectory.turns
    for call, result in turn.attempts
    if call is not None and result is not None
  ]
  return {
    'run_number': number,
    'execution_time_ms': int(1000 * waits.total(trajectory)),
    'model_response': trajectory.answer,
    'tools_used': list(dict.fromkeys(call.tool for call, _ in calls)),
    'tool_results': [
      {
        'tool_name': call.tool,
        'arguments': dict(call.arguments),
        'result': {'success': result.error is None, 'result': result.text},
      }
      for call, result in calls
    ],
    'verification_results': results,
    'verification_summary': {
      'total': len(results),
      'passed': passed,
      'failed': len(results) - passed,
      'pass_rate': passed / len(results),
    },
    'overall_success': all(result['passed'] for result in results.values()),
  }


def statistics(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what the published scripts derive from the runs of a task."""
  summaries = [r['verification_summary'] for r in runs if 'verification_summary' in r]
  total = sum(s['total'] for s in summaries)
  passed = sum(s['passed'] for s in summaries)
  won = sum(bool(r['overall_success']) for r in runs)
  return {
    'total_runs': len(runs),
    'successful_runs': won,
    'overall_success_rate': won / len(runs) if runs else 0,
    'pass_at_1': float(bool(runs and runs[0]['overall_success'])),
    'verifier_level_pass_rate': passed / total if total else 0,
    'total_verifiers_checked': total,
    'total_verifiers_passed': passed,
  }


def result_of(group: records.Group) -> dict[str, Any]:
  """Returns the result of a task as the published scripts write it."""
  state = group.task.its_world.state
  runs = [
    run_of(group.task, trajectory, i + 1)
    for i, trajectory in enumerate(group.trajectories)
  ]
  return {
    'benchmark_config': {
      'number_of_runs': len(runs),
      'user_prompt': group.task.query,
      'gym_servers': [
        {
          'name': server['name'],
          'url': server['url'],
          'seed_database_file': server['seed'],
        }
        for server in state['servers']
      ],
      'total_gyms': len(state['servers']),
    },
    'runs': runs,
    'statistics': statistics(runs),
  }


def scores(groups: Sequence[records.Group]) -> dict[str, Any]:
  """Returns the parity score and the strict one of some tasks.

  Keys: 'tasks', 'rollouts', 'errors' (rollouts without a reward), and 'parity' and
  'strict', each with 'success' and 'verifier_pass_rate', means over tasks; of 'strict'
  over those
  with a scored rollout, which has the 95% 'interval' of 'success', too. None without
  any.
  """
  parity = [result_of(group)['statistics'] for group in groups]
  success, passed, errors = [], [], 0
  for group in groups:
    scored = [t for t in group.trajectories if t.reward is not None]
    errors += len(group.trajectories) - len(scored)
    if scored:
      success.append(intervals.mean(_succeeded(t) for t in scored))
      passed.append(intervals.mean(_pass_rate(t) for t in scored))
  return {
    'tasks': len(groups),
    'rollouts': sum(len(group.trajectories) for group in groups),
    'errors': errors,
    'parity': {
      'success': intervals.mean(s['overall_success_rate'] for s in parity),
      'verifier_pass_rate': intervals.mean(
        s['verifier_level_pass_rate'] for s in parity
      ),
    },
    'strict': {
      'success': intervals.mean(success),
      'interval': intervals.bootstrap_interval(success) if success else None,
      'verifier_pass_rate': intervals.mean(passed),
    },
  }


def _succeeded(trajectory: records.Trajectory) -> bool:
  return bool(
    trajectory.verdict and trajectory.verdict.success and (trajectory.reward or 0.0) > 0
  )


def _pass_rate(trajectory: records.Trajectory) -> float:
  results = trajectory.verdict.results if trajectory.verdict else ()
  return intervals.mean(bool(result.passed) for result in results) or 0.0


def by_mode_and_domain(groups: Sequence[records.Group]) -> dict[str, Any]:
  """Returns the scores of all tasks ('all'), and by 'MODE/DOMAIN'."""
  parts: dict[str, list[records.Group]] = {}
  for group in groups:
    tags = group.task.tags
    name = f'{tags.get("mode") or "-"}/{tags.get("domain") or "-"}'
    parts.setdefault(name, []).append(group)
  found = {name: scores(part) for name, part in sorted(parts.items())}
  return {'all': scores(groups)} | found


def write(directory: epath.Path, groups: Sequence[records.Group]) -> epath.Path:
  """Writes a file for each task, as the published compute_score.py reads them.

  Args:
    directory: DIRECTORY/MODE/DOMAIN/results_ID.json are written below it; what was
      there before is removed.
    groups: rollouts of the tasks.

  Returns:
    The directory for compute_score.py --results_folder.
  """
  directory.rmtree(missing_ok=True)
  for group in groups:
    tags = group.task.tags
    place = directory / (tags.get('mode') or 'oracle') / (tags.get('domain') or 'tasks')
    name = group.task.id.rpartition('/')[2]
    writing.write_whole(
      place / f'results_{name}.json',
      json.dumps(result_of(group), indent=1, default=str),
    )
  return directory


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the scores as text for people."""
  lines = [
    f'{"mode/domain":32} {"tasks":>6} {"errors":>6} {"parity":>8} {"strict":>8}'
    f' {"checks, parity":>14} {"strict":>8}'
  ]
  for name, one in found.items():
    figures = [
      one[kind][key]
      for key in ('success', 'verifier_pass_rate')
      for kind in ('parity', 'strict')
    ]
    shown = ['-' if x is None else f'{x:.1%}' for x in figures]
    lines.append(
      f'{name:32} {one["tasks"]:6} {one["errors"]:6} {shown[0]:>8} {shown[1]:>8}'
      f' {shown[2]:>14} {shown[3]:>8}'
    )
  return '\n'.join(lines)
