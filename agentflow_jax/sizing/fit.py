"""What a run needs of a topology: its programs, compiled without its chips.

Memory and collectives are read off the compiled programs; FLOPs are counted from
the shapes (core.flops), since XLA counts the body of a loop once. Seconds are
what the published rates of the chips would allow, under assumptions that the
report names: no measurement.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from agentflow_jax.assembly import local_model, model_files
from agentflow_jax.config import consistency, roles, schema
from agentflow_jax.core import handover, hlo, masters, model, published
from agentflow_jax.core import sharding, update
from agentflow_jax.inference import pages, programs as programs_lib
from agentflow_jax.sizing import estimate, topologies
from agentflow_jax.training import update_shapes
from agentflow_jax.weights import families, model_directory

_GIB = 1 << 30
_REMEDIES = (
  'more mesh.fsdp or mesh.tensor; shorter batch.tokens_per_row or fewer'
  ' batch.rows_per_micro; planner.remat=full; planner.dtype=bfloat16,'
  ' optimizer.mu_dtype=bfloat16 or planner.lora.rank;'
  ' mesh.sampler_devices=-1; fewer engine.kv_tokens or engine.slots'
)


class DoesNotFit(RuntimeError):
  """The run needs more memory than a chip has; says how much, and what helps."""


def network(config: schema.Config, name: str = '') -> model.ModelConfig:
  """Returns the planner's network, without its parameters.

  Args:
    config: config of the run.
    name: name in core.published, for a planner.directory that is not here; '' reads its
      config.json.

  Raises:
    ConfigError, CheckpointError: nothing says what the network is.
  """
  planner = config.planner
  runtime = model_files.runtime_of(planner)
  if name:
    if name not in published.MODELS:
      raise schema.ConfigError(
        f'--model={name}: there are {", ".join(sorted(published.MODELS))}'
      )
    found = published.MODELS[name]
  elif planner.model is not None:
    found = dataclasses.replace(planner.model, vocab_size=planner.vocab_size)
  elif (epath.Path(planner.directory) / model_directory.CONFIG).exists():
    found = model_directory.load_config(planner.directory)
  else:
    raise schema.ConfigError(
      f'planner.directory={planner.directory!r} has no config.json here; name'
      f' the network: --model={" | ".join(sorted(published.MODELS))}'
    )
  try:
    found = dataclasses.replace(found, **runtime)
  except (ValueError, families.UnsupportedModel) as e:
    raise schema.ConfigError(f'planner: {e}') from e
  inside = roles.samples_inside(config)
  if inside and config.engine.max_prompt_tokens > found.max_positions:
    raise schema.ConfigError(
      f'engine.max_prompt_tokens {config.engine.max_prompt_tokens} exceeds the'
      f" network's context of {found.max_positions}"
    )
  if config.engine.max_kept > found.vocab_size:
    raise schema.ConfigError(
      f"engine.max_kept {config.engine.max_kept} exceeds the network's"
      f' vocabulary of {found.vocab_size}'
    )
  return found


def check(
  config: schema.Config,
  planner: model.ModelConfig,
  topology: topologies.Topology,
  slices: int = 1,
  say=lambda text: None,
) -> dict[str, Any]:
  """Compiles every program of a run, and adds up what it needs.

  Args:
    config: config of the run.
    planner: its network.
    topology: topology of a slice.
    slices: number of slices.
    say: function that is told what is being compiled.

  Returns:
    The report, of JSON values; 'fits' says whether it does.

  Raises:
    ConfigError: mesh, rows or topology do not go together.
    DoesNotFit: the compiler refused a program.
  """
  consistency.check_trains(config)
  consistency.check(config)
  devices = topologies.devices(topology, slices)
  axes = dataclasses.asdict(config.mesh)
  del axes['sampler_devices']
  if topology.is_estimate and planner.attention == 'pallas':
    planner = dataclasses.replace(planner, attention='blocks')
  try:
    mesh = sharding.make_mesh(**axes, devices=devices)
    sharding.check_rows(mesh, config.batch.rows_per_micro)
    programs, held, local = _lowered(config, planner, mesh, topology)
  except schema.ConfigError:
    raise
  except ValueError as e:
    raise schema.ConfigError(f'mesh: {e}') from e
  report: dict[str, Any] = {
    'name': config.name,
    'chips': len(devices),
    'mesh': dict(mesh.shape),
    'chips_of_a_process': local,
    'is_estimate': topology.is_estimate,
    'jax': jax.__version__,
    'programs': {},
  }
  for name, lower in programs.items():
    say(f'compiling {name} ...')
    report['programs'][name] = _compiled(name, lower)
  temporary = max(p['temporary_bytes'] for p in report['programs'].values())
  report['bytes_a_chip'] = {**held, 'temporaries of one program': temporary}
  report['bytes_needed'] = sum(report['bytes_a_chip'].values())
  report['bytes_there'] = topology.chip.memory
  report['fits'] = report['bytes_needed'] <= topology.chip.memory
  report['assumes'], report['estimate'] = estimate.estimated(
    config, planner, mesh, topology.chip, report, local
  )
  return report


def _struct(tree, shardings):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s), tree, shardings
  )


def _bytes(tree) -> int:
  """Bytes of the arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _alone(sampled, topology, local):
  """Returns the same shapes over a host that is a topology of its own."""
  host = np.array(topologies.devices(topologies.host_of(topology, local)))

  def moved(x):
    of_run = x.sharding.mesh
    mesh = jax.sharding.Mesh(
      host[: of_run.size].reshape(of_run.devices.shape), of_run.axis_names
    )
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, x.sharding.spec)
    )

  return jax.tree.map(moved, sampled)


def _lowered(config, planner, mesh, topology):
  """Returns name -> function that compiles, bytes held, chips of a process."""
  trained = update_shapes.network_of(config, planner)
  key = jax.random.key(0)
  state = _struct(
    jax.eval_shape(
      lambda key: update.init_train_state(trained, config.optimizer, mesh, key), key
    ),
    update.state_shardings(trained, config.optimizer, mesh),
  )
  params = _struct(model.param_shapes(planner), sharding.param_shardings(planner, mesh))
  reference = params if update_shapes.needs_reference(config) else None
  fn = update.make_update_fn(
    trained, config.optimizer, update_shapes.loss_of(config), mesh
  )
  rows = sharding.batch_sharding(mesh, row_axis=1)

  def structs(example):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        np.shape(x),
        np.asarray(x).dtype,
        sharding=rows if np.ndim(x) else sharding.replicated(mesh),
      ),
      example,
    )

  master = state.opt_state.master if masters.is_needed(trained) else {}
  programs = {}
  for length in update_shapes.row_lengths(config):
    taken = structs(update_shapes.example_batch(config, length))
    programs[f'update of rows of {length}'] = lambda taken=taken: fn.lower(
      state, reference, taken, jax.ShapeDtypeStruct((3,), np.float32)
    ).compile()
    if config.algorithm == 'flow_grpo' and config.flow_grpo.old_logprobs == 'recompute':
      score = update.make_score_fn(planner, mesh)
      programs[f'old logprobs of rows of {length}'] = lambda taken=taken, score=score: (
        score.lower(params, taken).compile()
      )
  process = mesh.devices.flat[0].process_index
  local = sum(d.process_index == process for d in mesh.devices.flat)
  held = {
    'trained parameters': _bytes(state.params),
    'optimizer state': _bytes(state.opt_state) - _bytes(master),
    'where it starts from (reference, base)': _bytes(params),
  }
  if master:
    held['float32 master of the parameters'] = _bytes(master)
  # Servers sample elsewhere.
  if roles.samples_inside(config):
    more, sampling = _sampling(config, planner, mesh, topology, params, local)
    programs |= more
    held |= sampling
  return programs, held, local


def _sampling(config, planner, mesh, topology, params, local):
  """Returns programs and bytes held of the engines, as `_lowered` does."""
  programs = {}
  if local_model.hands_over(config, mesh):
    hand = handover.Handover(planner, mesh, split=config.mesh.sampler_devices == -1)
    sampled = hand.shapes(params)
    if topology.platform == 'tpu' and mesh.size > local:
      sampled = _alone(sampled, topology, local)
    programs['handover to the sampler'] = lambda: hand.lower(params).compile()
  else:  # The engine copies what it needs to one device.
    one = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    sampled = _struct(params, jax.tree.map(lambda _: one, params))
  pool = jax.eval_shape(
    lambda: pages.make_pool(
      planner, config.engine.pages, config.engine.page_tokens, config.engine.kv_dtype
    )
  )
  where = pages.pool_sharding(sampled)
  pool = _struct(pool, jax.tree.map(lambda _: where, pool))
  try:
    settled = programs_lib.settled(planner, config.engine, where, topology.platform)
    reading = programs_lib.reading_of(planner, settled, where)
  except ValueError as e:
    raise schema.ConfigError(f'engine: {e}') from e
  sampler = programs_lib.Programs(planner, settled, sampled, pool, reading)
  programs['prefill'] = sampler.prefill
  gathered = sampler.reading.lanes * _bytes(sampler.store_shapes())
  desks = sampler.reading.lanes * _bytes(sampler.desk_shapes())
  programs['decode'] = lambda: sampler.decode(config.planner.sampling.truncates)
  held = {}
  if not roles.samples_outside(config):
    held |= {
      'sampler: parameters, and the next ones': 2 * _bytes(sampled),
      'sampler: keys and values': _bytes(pool),
      'sampler: rows gathered of them': gathered,
      'sampler: pages that lanes read into': desks,
    }
  if roles.uses_frozen(config):
    held |= {
      'frozen modules: parameters': _bytes(sampled),
      'frozen modules: keys and values': _bytes(pool) + gathered + desks,
    }
  return programs, held


def _compiled(name, compile_it) -> dict[str, Any]:
  """Returns what is read off one program."""
  start = time.monotonic()
  try:
    program = compile_it()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    said = ' '.join(str(e).split())[:400]
    raise DoesNotFit(
      f'{name} does not fit a chip by itself: {said}\nWhat may help: {_REMEDIES}'
    ) from e
  memory = program.memory_analysis()
  # What is alive at the worst moment; temp_size would count places that are
  # used one after the other. A CPU program does not say.
  peak = memory.peak_memory_in_bytes or (
    memory.argument_size_in_bytes + memory.temp_size_in_bytes
  )
  sent = hlo.collectives(program.as_text())
  return {
    'temporary_bytes': max(peak - memory.argument_size_in_bytes, 0),
    'argument_bytes': memory.argument_size_in_bytes,
    'collectives': {
      kind: {'count': s.count, 'bytes': s.bytes} for kind, s in sent.items()
    },
    'compile_seconds': time.monotonic() - start,
  }


def table(report: Mapping[str, Any]) -> str:
  """Returns a report for people."""
  lines = [
    f'{report["name"]}: {report["chips"]} chips as {report["mesh"]},'
    f' {report["chips_of_a_process"]} a process'
    + (
      ' -- AN ESTIMATE: compiled for virtual CPU devices in their stead'
      if report['is_estimate']
      else ''
    ),
    '',
    'Memory of a chip [GiB]',
  ]
  lines += [
    f'  {size / _GIB:9.2f}  {name}' for name, size in report['bytes_a_chip'].items()
  ]
  lines += [
    f'  {report["bytes_needed"] / _GIB:9.2f}  needed of'
    f' {report["bytes_there"] / _GIB:.2f}',
    '',
    'Programs: temporaries [GiB], collectives of one pass [count, GiB],'
    ' compiled in [s]',
  ]
  for name, program in report['programs'].items():
    sent = ', '.join(
      f'{kind} {c["count"]} {c["bytes"] / _GIB:.3g}'
      for kind, c in program['collectives'].items()
    )
    lines.append(
      f'  {program["temporary_bytes"] / _GIB:9.2f}  {name}:'
      f' {sent or "no collectives"}; {program["compile_seconds"]:.0f}'
    )
  lines += ['', 'A step, if']
  lines += [f'  {v:>9g}  {k}' for k, v in report['assumes'].items()]
  lines += ['would come to']
  for name, value in report['estimate'].items():
    if isinstance(value, dict):
      value = ' to '.join(f'{v:.3g}' for v in sorted(value.values()))
    else:
      value = f'{value:.4g}'
    lines.append(f'  {value:>9}  {name}')
  lines.append('')
  if report['fits']:
    lines.append('It fits.')
  else:
    over = (report['bytes_needed'] - report['bytes_there']) / _GIB
    lines.append(
      f'It does NOT fit: {over:.2f} GiB a chip too much. What may help: {_REMEDIES}'
    )
  return '\n'.join(lines)
