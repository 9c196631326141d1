"""AdamW or Muon, with warmup, a schedule, and clipping of the total gradient."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

# Norm scales and biases do not decay.
_DECAYED = ('kernel', 'embedding', 'head', 'lora_a', 'lora_b')
# Of Muon: the decay of its momentum, and the root mean square of its updates before
# the learning rate, which is what Adam's are (arXiv 2502.16982, equation 4).
_MOMENTUM = 0.95
_ROOT_MEAN_SQUARE = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What turns a gradient into a new parameter.

  Attributes:
    learning_rate: peak of the learning rate.
    schedule: course of the learning rate after warmup: 'constant', or down to 0 at
      total_steps by half a 'cosine' or a 'linear' ramp.
    warmup_steps: number of updates of linear warmup; update n (from 0) takes
      (n + 1) / warmup_steps of the peak, so no update is lost on rate 0.
    total_steps: number of updates in all; 'cosine' and 'linear' need it.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: term that Adam adds to the root of the second moment.
    weight_decay: decoupled weight decay, of kernels and embeddings only.
    max_grad_norm: largest global norm of the gradient, which is scaled down to it;
      None for no limit.
    mu_dtype: dtype of Adam's first moment; 'bfloat16' saves two bytes a parameter.
      The second moment stays float32: with b2 near 1 its steps would be lost.
    kind: rule of the direction: 'adam', or 'muon' for the matrices of the layers,
      whose momentum is made orthogonal. Embeddings, norms and biases stay with Adam.
      Muon's updates are scaled to the size of Adam's (arXiv 2502.16982), so that both
      share one learning rate.
  """

  learning_rate: float
  schedule: Literal['constant', 'cosine', 'linear'] = 'constant'
  warmup_steps: int = 0
  total_steps: int | None = None
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  max_grad_norm: float | None = 1.0
  mu_dtype: Literal['float32', 'bfloat16'] = 'float32'
  kind: Literal['adam', 'muon'] = 'adam'

  def __post_init__(self):
    if not 0 <= self.learning_rate < float('inf'):
      raise ValueError(f'learning_rate must be >= 0: {self.learning_rate}')
    if self.schedule not in ('constant', 'cosine', 'linear'):
      raise ValueError(f'schedule: unknown {self.schedule!r}')
    if self.warmup_steps < 0:
      raise ValueError(f'warmup_steps must be >= 0: {self.warmup_steps}')
    if (self.schedule == 'constant') != (self.total_steps is None):
      raise ValueError(
        f'total_steps goes with cosine and linear: {self.schedule!r}, '
        f'{self.total_steps}'
      )
    if self.total_steps is not None and self.total_steps <= self.warmup_steps:
      raise ValueError(
        f'total_steps {self.total_steps} must exceed warmup_steps {self.warmup_steps}'
      )
    for name in ('b1', 'b2'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f'{name} must lie in [0, 1): {getattr(self, name)}')
    if not self.eps > 0 or not self.weight_decay >= 0:
      raise ValueError(f'eps {self.eps} or weight_decay {self.weight_decay}')
    if self.max_grad_norm is not None and not self.max_grad_norm > 0:
      raise ValueError(f'max_grad_norm must be > 0: {self.max_grad_norm}')
    if self.mu_dtype not in ('float32', 'bfloat16'):
      raise ValueError(f'mu_dtype: unknown {self.mu_dtype!r}')
    if self.kind not in ('adam', 'muon'):
      raise ValueError(f'kind: unknown {self.kind!r}; adam or muon')


def make_schedule(config: OptimizerConfig) -> Callable[[Any], jax.Array]:
  """Returns count -> float32 learning rate of update `count`, from 0."""

  def schedule(count):
    count = jnp.asarray(count, jnp.float32)
    rate = jnp.float32(config.learning_rate)
    if config.schedule != 'constant':
      assert config.total_steps is not None
      span = config.total_steps - config.warmup_steps
      done = jnp.clip((count - config.warmup_steps) / span, 0.0, 1.0)
      if config.schedule == 'linear':
        rate *= 1.0 - done
      else:
        rate *= 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    if config.warmup_steps:
      rate *= jnp.minimum((count + 1.0) / config.warmup_steps, 1.0)
    return rate

  return schedule


def _decay_mask(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in _DECAYED, params
  )


def _is_matrix(path: Any) -> bool:
  """Returns whether a parameter is a layer's matrix, [L, ...], which Muon takes."""
  return path[-1].key == 'kernel'


def _matrix_axes(path: Any, _: Any) -> optax.contrib.MuonDimensionNumbers:
  """Returns which axes of a layers' kernel are summed over, and which are made.

  Kernels are [L, D, H, E] (q, k, v), [L, H, E, D] (o), [L, D, F] or [L, F, D]; each
  layer's is one matrix.
  """
  name = path[-2].key
  if name == 'o':
    return optax.contrib.MuonDimensionNumbers((-3, -2), -1)
  if name in ('q', 'k', 'v'):
    return optax.contrib.MuonDimensionNumbers(-3, (-2, -1))
  return optax.contrib.MuonDimensionNumbers(-2, -1)


def _scaled(path: Any, update: jax.Array) -> jax.Array:
  """Returns an orthogonal update at the size of Adam's (arXiv 2502.16982, eq. 4)."""
  axes = _matrix_axes(path, update)
  fans = (
    math.prod(update.shape[i] for i in np.atleast_1d(numbers)) for numbers in axes
  )
  return update * (_ROOT_MEAN_SQUARE * math.sqrt(max(fans)))


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
  """Returns the rule that makes a direction of gradients."""
  adam = optax.scale_by_adam(
    b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.mu_dtype
  )
  if config.kind == 'adam':
    return adam
  axes = lambda tree: jax.tree_util.tree_map_with_path(_matrix_axes, tree)
  muon = optax.chain(
    optax.contrib.scale_by_muon(
      beta=_MOMENTUM, mu_dtype=config.mu_dtype, weight_dimension_numbers=axes
    ),
    optax.stateless(
      lambda updates, _: jax.tree_util.tree_map_with_path(_scaled, updates)
    ),
  )
  return optax.partition(
    {'adam': adam, 'muon': muon},
    lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: 'muon' if _is_matrix(path) else 'adam', params
    ),
  )


def make_tx(config: OptimizerConfig) -> optax.GradientTransformation:
  """Returns the optimizer: clip, Adam or Muon, decay, then minus the learning rate."""
  steps = []
  if config.max_grad_norm is not None:
    steps.append(optax.clip_by_global_norm(config.max_grad_norm))
  steps.append(_direction(config))
  if config.weight_decay:
    steps.append(optax.add_decayed_weights(config.weight_decay, mask=_decay_mask))
  steps.append(optax.scale_by_learning_rate(make_schedule(config)))
  return optax.chain(*steps)


def state_like(
  tx: optax.GradientTransformation, state: Any, per_param: Any, other: Any
) -> Any:
  """Returns an optimizer state's tree with values of the parameters in it.

  Args:
    tx: the optimizer.
    state: its state, or the shapes of it.
    per_param: tree of the parameters; its values stand where the state holds an
      array a parameter, such as a moment.
    other: value for everything else, such as counts.
  """
  # Muon's state has no array for what Adam takes, and the other way round.
  is_absent = lambda x: isinstance(x, optax.MaskedNode)
  return optax.tree_utils.tree_map_params(
    tx,
    lambda held, value: held if is_absent(held) else value,
    state,
    per_param,
    transform_non_params=lambda _: other,
    is_leaf=is_absent,
  )
