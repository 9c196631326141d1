"""Eight virtual CPU devices, set before any test module imports jax."""

import gc
import os

import pytest

# Whose programs launch/test.sh has compiled fast: there are hundreds, each runs for
# milliseconds, and what comes out is compared within tolerances, or only moved. A
# test that says that two programs give equal bits is marked `exact`: there they are
# compiled alike, and -m slow runs it again with programs as they are in use.
_QUICK = (
  'tests/core/',
  'tests/weights/',
  'tests/inference/',
  'tests/sizing/fit_test.py',
  'tests/training/',
  'tests/evaluation/',
  'tests/report/',
  'tests/assembly/',
  'tests/rollouts/',
  'tests/serving/',
)
# Files in which most tests say that bits are equal, so that all are marked `exact`.
_EXACT = (
  'tests/inference/batching_test.py',
  'tests/inference/choices_test.py',
  'tests/inference/engine_',
  'tests/inference/sampling_test.py',
)
# These are about programs as they are in use: what sampler and trainer make of one
# policy, requests that sample the same bits in any company, and processes that have to
# agree.
_IN_USE = (
  'tests/inference/engine_crowd_test.py',
  'tests/training/on_policy_test.py',
  'tests/training/many_processes_test.py',
)

# Files that take long, in the order in which processes are given them: one that
# begins last would keep one process busy while the others are done.
_LONG = (
  'tests/evaluation/command_test.py',
  'tests/core/update_test.py',
  'tests/training/run_test.py',
  'tests/core/forest_test.py',
  'tests/inference/engine_sampling_test.py',
  'tests/weights/checkpoints_test.py',
  'tests/core/masters_test.py',
  'tests/core/attention_test.py',
  'tests/training/trainer_test.py',
  'tests/sizing/fit_test.py',
  'tests/training/desk_run_test.py',
  'tests/report/report_test.py',
  'tests/training/sft_rollouts_test.py',
  'tests/training/own_environment_run_test.py',
  'tests/inference/sampling_test.py',
  'tests/weights/smollm2_test.py',
  'tests/core/truncation_test.py',
  'tests/core/logprobs_test.py',
  'tests/training/own_code_run_test.py',
  'tests/core/model_test.py',
  'tests/weights/families_test.py',
  'tests/training/benchmark_golds_test.py',
  'tests/inference/pages_test.py',
  'tests/entry_points_test.py',
  'tests/agents/tools/python/escape_test.py',
  'tests/training/on_policy_test.py',
  'tests/mistakes_test.py',
  'tests/agents/environments/programs/sessions_test.py',
  'tests/agents/tools/mcp/servers_test.py',
  'tests/inference/engine_crowd_test.py',
  'tests/launch/sweep_test.py',
  'tests/training/many_processes_test.py',
  'tests/agents/tools/python/python_tool_test.py',
  'tests/agents/tools/own_tool_test.py',
  'tests/external/sampler_test.py',
  'tests/agents/tools/web/web_client_test.py',
  'tests/agents/endpoints/client_test.py',
  'tests/agents/rewards/symbolic_test.py',
)

_DEVICES = '--xla_force_host_platform_device_count=8'

# Tracing makes many objects that live long: at Python's own thresholds a sixth of the
# time of such tests goes into looking for cycles among them.
gc.set_threshold(50_000, 20, 50)

os.environ['JAX_PLATFORMS'] = 'cpu'
# Programs without the lines of Python that made them are lowered faster.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}'


def _where(path, config):
  """The path of a test file below the checkout."""
  return path.relative_to(config.rootpath).as_posix()


def _is_quick(where):
  return where.startswith(_QUICK) and where not in _IN_USE


def pytest_ignore_collect(collection_path, config):
  """Skips the files of the other half of launch/test.sh.

  Importing what they import takes each process seconds.
  """
  quick = {'quick and not slow': True, 'not quick and not slow': False}.get(
    config.option.markexpr
  )
  if quick is None or collection_path.suffix != '.py':
    return None  # Others decide.
  return _is_quick(_where(collection_path, config)) != quick or None


@pytest.fixture(autouse=True, scope='session')
def _totals_of_every_run_add_up():
  """Successes, first causes and the unscored are all rollouts, whatever a test runs."""
  # Not before the devices are set above.
  from agentflow_jax.rollouts import mistakes

  count = mistakes.of_groups

  def checked(groups):
    found = count(groups)
    made = [t for group in groups for t in group.trajectories]
    if made:
      causes = sum(found['first_causes'].values())
      assert found['success'] == sum(mistakes.is_success(t) for t in made), found
      assert found['unscored'] == sum(t.reward is None for t in made), found
      assert found['success'] + causes + found['unscored'] == len(made), found
      assert causes == sum(found['levels'].values()), found
    return found

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mistakes, 'of_groups', checked)
    yield


@pytest.hookimpl(tryfirst=True)  # Before -m chooses.
def pytest_collection_modifyitems(config, items):
  places = {where: place for place, where in enumerate(_LONG)}
  items.sort(key=lambda item: places.get(_where(item.path, config), len(_LONG)))
  for item in items:
    where = _where(item.path, config)
    if _is_quick(where):
      item.add_marker('quick')
    if where.startswith(_EXACT):
      item.add_marker('exact')
    if item.get_closest_marker('exact') and config.option.markexpr == 'slow':
      item.add_marker('slow')
