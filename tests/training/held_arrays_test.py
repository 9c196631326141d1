"""One copy of the parameters serves all who only read it."""

import asyncio
import dataclasses
import re

import jax
import pytest
from etils import epath

from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import schema
from agentflow_jax.core import sharding
from agentflow_jax.training import run, trainer as trainer_lib
from tests.assembly import pointers
from tests.config import mini


@pytest.mark.slow
def test_one_copy_serves_all_who_only_read_it(tmp_path):
  """The frozen modules sample from the arrays that training starts from."""
  base = mini.config(tmp_path)
  frozen = schema.ModuleConfig('frozen', schema.SamplingSpec(0.0))
  frozen = dataclasses.replace(
    frozen, sampling=dataclasses.replace(frozen.sampling, max_new_tokens=8)
  )
  config = dataclasses.replace(
    base,
    agent=dataclasses.replace(base.agent, verifier=frozen),
    mesh=schema.MeshConfig(),
    flow_grpo=dataclasses.replace(base.flow_grpo, kl_coef=0.1),
  )

  async def of(mesh):
    system = system_lib.build(config, epath.Path(tmp_path), mesh)
    try:
      trainer = trainer_lib.Trainer(system)
      found = (
        system.model.params,
        system.model.frozen_engine.params,
        trainer._reference,
        system.model.engine.params,
        trainer.state.params,
      )
      return [*map(pointers.of, found), run._held(trainer, system)]
    finally:
      await system.close()

  one = sharding.make_mesh(devices=jax.devices()[:1])
  base, frozen, reference, sampler, trained, held = asyncio.run(of(one))
  assert reference == base
  # On this platform a sampler reads layers apart, which the update cannot.
  own = {name: at for name, at in frozen.items() if 'layers_' in name}
  assert len(own) > 10
  shared = {name: at for name, at in frozen.items() if name not in own}
  assert len(shared) >= 2 and shared.items() <= base.items()
  # What changes is apart from it: the update donates its state.
  assert pointers.are_apart(base, own, sampler, trained)
  # What is held says so: layers are all but embedding and last norm.
  sizes = dict(re.findall(r'([a-z ]+)(?: \(.*?\))? ([0-9.]+) MB', held))
  assert 0 < float(sizes[' frozen modules']) < float(sizes[' sampler'])
  assert 'reference, frozen planner, frozen modules)' in held
  # Over eight devices each holds an eighth, and no host array is left.
  mesh = sharding.make_mesh(1, 8, 1)
  base, frozen, reference, *_, held = asyncio.run(of(mesh))
  assert reference == base and {len(at) for at in base.values()} == {8}
  assert {len(at) for at in frozen.values()} == {1}
  assert 'reference, frozen planner)' in held
