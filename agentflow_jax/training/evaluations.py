"""The evaluations around a run: before, during, after, and the controls."""

import dataclasses
from typing import Any

from etils import epath

from agentflow_jax.agents import rollout
from agentflow_jax.assembly import scripted_planners, system as system_lib
from agentflow_jax.evaluation import evaluate
from agentflow_jax.rollouts import evaluation_files
from agentflow_jax.runtime import progress


class Evaluations:
  """Evaluates on the test tasks before and after, on validation in between."""

  def __init__(
    self,
    system: system_lib.System,
    workdir: epath.Path,
    bar: progress.Progress,
    clock: Any,
  ):
    self.workdir = workdir
    self._system = system
    self._bar = bar
    self._clock = clock

  async def start(self) -> None:
    """The planner that training starts from, on the test tasks."""
    if self._system.config.evaluation.start_and_final:
      with self._clock('evaluate_start'):
        await self._test('start')
        await self._test('start_greedy', greedy=True)

  def lacks_start(self) -> bool:
    """Returns whether the evaluation before training is wanted, and not there.

    All processes get the same answer: they share the workdir.
    """
    wanted = self._system.config.evaluation.start_and_final
    path = evaluation_files.path_of(self.workdir, 'start_greedy')
    (lacks, *_) = self._system.processes.exchange(
      str(wanted and not path.exists()).encode()
    )
    return lacks == b'True'

  async def during(self) -> dict[str, float]:
    """The current planner on the validation tasks, sampled and greedy."""
    system = self._system
    assert system.model.engine is not None  # A planner is trained.
    metrics = {}
    with self._clock('evaluate'):
      for suffix, greedy in (('', False), ('_greedy', True)):
        result = await evaluate.evaluate(
          system.agent,
          system.tasks.validation,
          name=f'validation_{system.model.engine.params_version}',
          split='validation',
          seed=system.config.seed,
          processes=system.processes,
          greedy=greedy,
          concurrent=system.config.train.concurrent_rollouts,
        )
        low, high = result.interval()
        metrics |= {
          f'eval/items_requested{suffix}': len(result.groups),
          f'eval/items_scored{suffix}': len(result.scores),
          f'eval/accuracy_over_requested{suffix}': (result.accuracy_over_requested),
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
      start_params: parameters before training, for the frozen control.
      params: parameters that the engine samples from before and after the call.
    """
    config = self._system.config.evaluation
    if config.start_and_final:
      with self._clock('evaluate_final'):
        await self._test('final')
        await self._test('final_greedy', greedy=True)
    if config.controls:
      with self._clock('controls'):
        for name, agent in self._controls().items():
          await self._test(f'control_{name}_planner', agent=agent)
        assert self._system.model.engine is not None
        version = self._system.model.engine.params_version
        self._system.model.sample_from(start_params, 0)
        await self._test('control_frozen_planner')
        self._system.model.sample_from(params, version)

  def _controls(self) -> dict[str, rollout.Agent]:
    """Returns the agents whose planners follow a script, by name."""
    system = self._system
    if system.config.agent.kind == 'served':
      return {}  # Scripts do not speak to an agent that is not ours.
    agents = {'empty': system.with_script(scripted_planners.empty)}
    has_scripts = system.config.has_scripts
    if has_scripts and system.config.task_set.kind == 'desk':
      blind = scripted_planners.BlindPlanner(system.planner)
      agents |= {
        'refusing': system.with_script(
          scripted_planners.make_refusing(system.tasks.train)
        ),
        'blind': dataclasses.replace(system.agent, planner=blind),
      }
    if has_scripts:
      # Only there are the steps known, and what a random plan may say.
      return agents | {
        'oracle': system.with_script(scripted_planners.oracle),
        'random': system.with_script(scripted_planners.uniform),
      }
    planner = scripted_planners.RandomPlanner(
      system.planner, system.config.agent.verbs, system.config.agent.plan_format
    )
    return agents | {'random': dataclasses.replace(system.agent, planner=planner)}

  async def _test(
    self, name: str, agent: rollout.Agent | None = None, greedy: bool = False
  ) -> None:
    system = self._system
    result = await evaluate.evaluate(
      agent or system.agent,
      system.tasks.test,
      name=name,
      split='test',
      seed=system.config.seed,
      processes=system.processes,
      trials=1 if greedy else system.config.evaluation.trials,
      greedy=greedy,
      concurrent=system.config.train.concurrent_rollouts,
    )
    if system.processes.is_primary:
      evaluation_files.write(self.workdir, result.file())
    self._bar.note(
      f'{name}: {result.accuracy:.1%} of {len(result.scores)} scored and'
      f' {result.accuracy_over_requested:.1%} of {len(result.groups)} requested'
      f' test tasks ({result.seconds:.0f} s)'
    )
