"""One optimizer update, jitted over a mesh: (state, batch) -> (state, metrics).

Micro-batches are looped over inside the program, with a trip count that is
data, so there is one program a batch shape. Gradients are added in float32,
never averaged; clipping sees their total.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import sharding as jax_sharding

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flow_grpo
from agentflow_jax.core import lora
from agentflow_jax.core import losses
from agentflow_jax.core import masters
from agentflow_jax.core import model
from agentflow_jax.core import optimizer
from agentflow_jax.core import primitives
from agentflow_jax.core import scoring
from agentflow_jax.core import sharding

Array = jax.Array
Mesh = jax_sharding.Mesh
LossConfig = flow_grpo.FlowGrpoConfig | losses.SftConfig

# Values of metrics['refused'].
ACCEPTED, REFUSED_GAP, REFUSED_NONFINITE = 0, 1, 2

# Metrics of how far an update moved things; 0 where it was refused.
_CHANGES = ('update_norm', 'applied_norm')


@flax.struct.dataclass
class TrainState:
  """What an update reads and writes.

  Attributes:
    step: int32[], number of updates made.
    params: trained arrays: the parameters, or with LoRA the adapters alone.
    opt_state: state of the optimizer; moments are float32, but see mu_dtype.
      Where params are bfloat16 it is a masters.MasterState: the optimizer's
      state and the float32 master whose rounding `params` are.
  """

  step: Array
  params: Any
  opt_state: Any


def _float32(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def base_of(config: model.ModelConfig) -> model.ModelConfig:
  """Returns the network without adapters."""
  return dataclasses.replace(config, lora=lora.LoraConfig())


def _trained(config: model.ModelConfig, params: Any) -> Any:
  """Returns what of a tree like init_params' is trained."""
  return lora.split(params)[1] if config.lora.rank else params


def state_shardings(
  config: model.ModelConfig, optimizer_config: optimizer.OptimizerConfig, mesh: Mesh
) -> TrainState:
  """Returns a TrainState of NamedShardings.

  Moments and the master, if there is one, are split as their parameter is.

  Args:
    config: the network.
    optimizer_config: config of the optimizer, which decides the shape of its state.
    mesh: mesh that sharding.make_mesh returned.

  Raises:
    ValueError: a parameter does not divide over the mesh.
  """
  params = _trained(config, sharding.param_shardings(config, mesh))
  tx = optimizer.make_tx(optimizer_config)
  shapes = jax.eval_shape(
    lambda tree: tx.init(_float32(_trained(config, tree))), model.param_shapes(config)
  )
  opt_state = optimizer.state_like(tx, shapes, params, sharding.replicated(mesh))
  if masters.is_needed(config):
    opt_state = masters.MasterState(params, opt_state)
  step: Any = sharding.replicated(mesh)
  return TrainState(step, params, opt_state)


def init_train_state(
  config: model.ModelConfig,
  optimizer_config: optimizer.OptimizerConfig,
  mesh: Mesh,
  key: Array,
  params: Any = None,
) -> TrainState:
  """Returns a state at step 0, born sharded.

  Args:
    config: the network.
    optimizer_config: the optimizer.
    mesh: mesh that sharding.make_mesh returned.
    key: random key of fresh parameters.
    params: parameters to start from, copied and cast; None draws fresh ones.
      A float32 master of bfloat16 parameters takes their values before they
      are rounded. With LoRA they are the base, which the state does not hold:
      the adapters are fresh, and add up to nothing.

  Raises:
    ValueError: params do not have the network's structure or shapes, or do not
      divide over the mesh.
  """
  shardings = state_shardings(config, optimizer_config, mesh)
  tx = optimizer.make_tx(optimizer_config)

  def init(key, params):
    if params is None:
      # Rounded here, since XLA may leave out the rounding of the draws.
      params = jax.tree.map(
        lambda x: primitives.rounded(x.astype(jnp.float32), x.dtype),
        _trained(config, model.init_params(config, key)),
      )
    # A copy: the first update donates its input, never the caller's arrays.
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
    opt_state = tx.init(params)
    if masters.is_needed(config):
      opt_state = masters.MasterState(params, opt_state)
      params = masters.rounding_of(params, config.param_dtype)
    return TrainState(jnp.int32(0), params, opt_state)

  if params is not None:
    check_params(base_of(config), params)
    if config.lora.rank:
      params = None
  return jax.jit(init, out_shardings=shardings)(key, params)


def check_params(config: model.ModelConfig, params: Any) -> None:
  """Raises ValueError unless params have the network's leaves and shapes."""
  expected = model.param_shapes(config)

  def shapes(tree):
    return {
      jax.tree_util.keystr(path): tuple(leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  want, got = shapes(expected), shapes(params)
  wrong = [
    f'{name}: expected {want.get(name)}, got {got.get(name)}'
    for name in sorted(want.keys() | got.keys())
    if want.get(name) != got.get(name)
  ]
  if wrong:
    raise ValueError('parameters do not fit the model: ' + '; '.join(wrong))


def _batch_shardings(mesh: Mesh) -> batch_lib.TurnBatch:
  rows = sharding.batch_sharding(mesh, row_axis=1)
  fields: dict[str, Any] = dict.fromkeys(batch_lib.TurnBatch.__dataclass_fields__, rows)
  fields['n_micro'] = sharding.replicated(mesh)
  return batch_lib.TurnBatch(**fields)


def make_score_fn(
  config: model.ModelConfig, mesh: Mesh, logits_chunk: int | None = None
) -> Callable[[Any, batch_lib.TurnBatch], Array]:
  """Returns the jitted (params, batch) -> float32[M, B, N] logprobs.

  0 where there is no target. For
  old_logprobs='recompute': batch.replace(old_logprobs=score(params, batch)).

  Args:
    config: the network.
    mesh: mesh that sharding.make_mesh returned.
    logits_chunk: targets of a row whose logits exist at one time, see
      scoring.score_micro.
  """
  constrain = sharding.make_constrain(mesh)

  def score(params, batch):
    def body(index, out):
      micro = batch.micro(index)
      scores = scoring.score_micro(config, params, micro, constrain, logits_chunk)
      return out.at[index].set(jnp.where(micro.weights > 0, scores.logprobs, 0.0))

    out = jnp.zeros(batch.weights.shape, jnp.float32)
    return jax.lax.fori_loop(0, batch.n_micro, body, out)

  return jax.jit(
    score,
    in_shardings=(sharding.param_shardings(config, mesh), _batch_shardings(mesh)),
    out_shardings=sharding.batch_sharding(mesh, row_axis=1),
  )


def make_merge_fn(config: model.ModelConfig, mesh: Mesh) -> Callable[[Any, Any], Any]:
  """Returns the jitted (base, adapters) -> parameters, see lora.merge.

  Args:
    config: the network, with LoRA.
    mesh: mesh that sharding.make_mesh returned.
  """
  whole = sharding.param_shardings(config, mesh)
  base, adapters = lora.split(whole)
  return jax.jit(
    lambda base, adapters: lora.merge(config.lora, base, adapters),
    in_shardings=(base, adapters),
    out_shardings=base,
  )


def make_update_fn(
  config: model.ModelConfig,
  optimizer_config: optimizer.OptimizerConfig,
  loss_config: LossConfig,
  mesh: Mesh,
  logits_chunk: int | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """Returns jitted (state, ref_params, batch, gap_bound) -> (state, metrics).

  state is donated: its arrays are dead after the call, a refused one's too (the
  returned state then holds the same bits). ref_params is the frozen reference
  where loss_config.kl_coef > 0, with LoRA the base in any case, and None
  otherwise; it must not share arrays with state (init_train_state copies what
  it starts from). batch may hold host arrays. gap_bound is a float32[3] in nats,
  bounds on max, 99th percentile and mean of |logprob - behavior_logprob| over the
  fresh targets, or a float32[] for max alone: when this update's own forward pass
  measures more, the update is refused. Pass inf for every update of a step but the
  first, whose parameters alone are those that sampled. A gap that is not a number is
  within no bound, not even inf.

  Metrics are float32 scalars: those of losses.metrics_of, and

  - grad_norm: norm of the gradient before clipping.
  - update_norm: norm of the change of what the optimizer works on: the float32
    master of bfloat16 parameters, or the trained float32 arrays themselves.
  - applied_norm: norm of the change of the parameters that are sampled from:
    those in param_dtype, with LoRA the merged ones.
  - param_norm: norm of state.params after the update.
  - lr: learning rate of this update.
  - refused: 0, 1 for the gap, 2 for a gradient that is not finite. A refused
    update returns the old state, its step and master included.

  Args:
    config: the network.
    optimizer_config: the optimizer.
    loss_config: FlowGrpoConfig or SftConfig.
    mesh: mesh that sharding.make_mesh returned. B must divide over data x fsdp.
    logits_chunk: targets of a row whose logits exist at one time, see
      scoring.score_micro.
  """
  tx = optimizer.make_tx(optimizer_config)
  schedule = optimizer.make_schedule(optimizer_config)
  shardings = state_shardings(config, optimizer_config, mesh)
  replicated = sharding.replicated(mesh)
  has_reference = getattr(loss_config, 'kl_coef', 0.0) > 0
  needs_ref = has_reference or config.lora.rank > 0
  base_shardings = sharding.param_shardings(base_of(config), mesh)
  gradient = _make_gradient(config, loss_config, mesh, logits_chunk)

  def update(state, ref_params, batch, gap_bound):
    if needs_ref != (ref_params is not None):
      raise ValueError(
        'ref_params are ' + ('missing' if needs_ref else 'given but unused')
      )
    grads, sums = gradient(state.params, ref_params, batch)
    metrics = losses.metrics_of(sums)
    metrics['grad_norm'] = _norm(grads)
    metrics['lr'] = schedule(state.step)
    metrics['refused'] = _refusal(metrics, gap_bound)
    state, norms = jax.lax.cond(
      metrics['refused'] == ACCEPTED,
      lambda: _apply(config, tx, state, ref_params, grads),
      lambda: (state, dict.fromkeys(_CHANGES, jnp.float32(0))),
    )
    return state, metrics | norms | {'param_norm': _norm(state.params)}

  return jax.jit(
    update,
    in_shardings=(
      shardings,
      base_shardings if needs_ref else replicated,
      _batch_shardings(mesh),
      replicated,
    ),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )


def _make_gradient(config, loss_config, mesh, logits_chunk):
  """Returns (params, ref_params, batch) -> (float32 gradients, Sums)."""
  specs = jax.tree.map(
    lambda s: s.spec, _trained(config, sharding.param_shardings(config, mesh))
  )
  is_policy = isinstance(loss_config, flow_grpo.FlowGrpoConfig)

  def gradient(params, ref_params, batch, constrain):
    shardings = jax.tree.map(
      lambda spec: jax_sharding.NamedSharding(constrain.mesh, spec), specs
    )
    micro_gradient = _make_micro_gradient(
      config, loss_config, constrain, shardings, logits_chunk
    )

    def body(index, carry):
      grads, sums = micro_gradient(params, ref_params, batch.micro(index))
      return (jax.tree.map(jnp.add, carry[0], grads), losses.add_sums(carry[1], sums))

    zeros = jax.lax.with_sharding_constraint(
      jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params), shardings
    )
    return jax.lax.fori_loop(
      0, batch.n_micro, body, (zeros, losses.zero_sums(is_policy))
    )

  def of_part(params, ref_params, batch):
    grads, sums = gradient(params, ref_params, batch, sharding.constrain_within_data())
    return jax.lax.psum(grads, 'data'), losses.sums_over(sums, 'data')

  if mesh.shape['data'] == 1:
    constrain = sharding.make_constrain(mesh)
    return lambda params, ref_params, batch: gradient(
      params, ref_params, batch, constrain
    )
  # Each part of 'data' adds up its own micro-batches, and what crosses the
  # network between slices is the sum, once an update, as parameters are split.
  # XLA would add up whole kernels' gradients over data x fsdp each time.
  spec = jax_sharding.PartitionSpec
  rows: dict[str, Any] = dict.fromkeys(
    batch_lib.TurnBatch.__dataclass_fields__, spec(None, 'data')
  )
  rows['n_micro'] = spec()
  return jax.shard_map(
    of_part,
    mesh=mesh,
    in_specs=(spec(), spec(), batch_lib.TurnBatch(**rows)),
    out_specs=spec(),
    axis_names={'data'},
    check_vma=False,
  )


def _make_micro_gradient(config, loss_config, constrain, shardings, logits_chunk):
  """Returns (params, ref_params, micro) -> (float32 gradients, Sums)."""
  has_reference = getattr(loss_config, 'kl_coef', 0.0) > 0

  def loss_fn(params, ref_params, micro):
    if config.lora.rank:
      params = lora.join(ref_params, params)
    scores = scoring.score_micro(config, params, micro, constrain, logits_chunk)
    if isinstance(loss_config, losses.SftConfig):
      return losses.sft_loss(loss_config, scores, micro)
    ref_logprobs = None
    if has_reference:
      ref_logprobs = jax.lax.stop_gradient(
        scoring.score_micro(
          base_of(config), ref_params, micro, constrain, logits_chunk
        ).logprobs
      )
    return losses.flow_grpo_loss(loss_config, scores, ref_logprobs, micro)

  def micro_gradient(params, ref_params, micro):
    grads, sums = jax.grad(loss_fn, has_aux=True)(params, ref_params, micro)
    grads = jax.lax.with_sharding_constraint(_float32(grads), shardings)
    return grads, sums

  return micro_gradient


def _refusal(metrics: dict[str, Array], gap_bound: Array) -> Array:
  """Returns why the update must not be made, as float32."""
  finite = jnp.isfinite(metrics['grad_norm']) & jnp.isfinite(metrics['loss'])
  refused = jnp.where(finite, ACCEPTED, REFUSED_NONFINITE)
  if 'logprob_gap/max' in metrics:
    names = ('max', 'p99', 'mean')[: gap_bound.size]
    measured = jnp.stack([metrics[f'logprob_gap/{name}'] for name in names])
    # Written so that a NaN is beyond any bound.
    beyond = ~jnp.all(measured <= gap_bound)
    refused = jnp.where(finite & beyond, REFUSED_GAP, refused)
  return refused.astype(jnp.float32)


def _apply(
  config, tx, state: TrainState, base: Any, grads: Any
) -> tuple[TrainState, dict[str, Array]]:
  """Returns the next state, and the norms named in _CHANGES."""
  old, inner = state.params, state.opt_state
  if masters.is_needed(config):
    old, inner = state.opt_state
  updates, inner = tx.update(grads, inner, old)
  new = optax.apply_updates(old, updates)
  update_norm = applied_norm = _norm(jax.tree.map(jnp.subtract, new, old))
  params, opt_state = new, inner
  if masters.is_needed(config):
    params = masters.rounding_of(new, config.param_dtype)
    opt_state = masters.MasterState(new, inner)
    applied_norm = _norm(
      jax.tree.map(jnp.subtract, _float32(params), _float32(state.params))
    )
  elif config.lora.rank:
    applied_norm = lora.distance(config.lora, base, old, new)
  return TrainState(state.step + 1, params, opt_state), {
    'update_norm': update_norm,
    'applied_norm': applied_norm,
  }


def _norm(tree: Any) -> Array:
  """Returns the float32 global norm."""
  squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(_float32(tree))]
  return jnp.sqrt(sum(squares))
