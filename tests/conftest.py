"""Eight virtual CPU devices, set before any test module imports jax."""

import os

import pytest

# Whose programs launch/test.sh has compiled fast: there are hundreds, each runs for
# milliseconds, and what comes out is compared within tolerances, or only moved. A
# test that says that two programs give equal bits is marked `exact`.
_QUICK = (
    'tests/core/', 'tests/weights/', 'tests/inference/kernels_test.py',
    'tests/inference/gathered_test.py', 'tests/inference/pages_test.py',
    'tests/training/preflight_test.py',
)

# Files that take longest: whole runs in several processes, programs that XLA
# compiles with care. They are begun first, so that no worker has one when the others
# are done.
_LONG = (
    'tests/inference/engine_test.py', 'tests/training/run_test.py',
    'tests/training/many_processes_test.py', 'tests/training/on_policy_test.py',
    'tests/training/collect_test.py', 'tests/core/lora_test.py',
    'tests/training/models_test.py', 'tests/entry_points_test.py',
    'tests/training/single_test.py', 'tests/core/handover_test.py',
    'tests/core/truncation_test.py', 'tests/core/update_test.py',
    'tests/core/forest_test.py', 'tests/training/preflight_test.py',
)

_DEVICES = '--xla_force_host_platform_device_count=8'

os.environ['JAX_PLATFORMS'] = 'cpu'
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}"


@pytest.hookimpl(tryfirst=True)  # Before -m chooses.
def pytest_collection_modifyitems(config, items):
  rank = {name: i for i, name in enumerate(_LONG)}
  name = lambda item: item.path.relative_to(config.rootpath).as_posix()
  items.sort(key=lambda item: rank.get(name(item), len(rank)))
  for item in items:
    where = name(item)
    if where.startswith(_QUICK) and not item.get_closest_marker('exact'):
      item.add_marker('quick')
