"""Engines that the tests of one file share."""

import pytest

from agentflow_jax.inference import engine as engine_lib
from tests.inference import engine_kit as kit


@pytest.fixture(scope='module', name='params')
def _params():
  return kit.init(0)


@pytest.fixture(scope='module', name='engine')
def _engine(params):
  with engine_lib.Engine(kit.MODEL, kit.CONFIG, params, version=3) as engine:
    engine.warmup()
    yield engine


@pytest.fixture(name='own_engine')
def _own_engine(params):
  with engine_lib.Engine(kit.MODEL, kit.CONFIG, params, name='own') as engine:
    yield engine
