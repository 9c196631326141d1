"""Scores packed rows with a model: the trainer's only forward pass."""

import jax
import jax.numpy as jnp

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import logprobs
from agentflow_jax.core import losses
from agentflow_jax.core import model

Array = jax.Array


def score_micro(
    config: model.ModelConfig,
    params: model.Params,
    micro: batch_lib.TurnBatch,
    constrain: model.Constrain,
    logits_chunk: int | None = None,
) -> losses.Scores:
  """Scores token t + 1 at position t of one micro-batch.

  Args:
    config: the network.
    params: its parameters; gradients flow to them through the logprobs.
    micro: fields [B, T].
    constrain: pins activations to the mesh.
    logits_chunk: positions whose logits exist at one time; divides T. None
      forms [B, T, V] at once, which is faster where it fits.

  Returns:
    Scores [B, T]; at padding they are finite and mean nothing.

  Raises:
    ValueError: logits_chunk does not divide T.
  """
  hidden = model.hidden_states(
      config, params, micro.token_ids, micro.positions, micro.segment_ids,
      constrain,
  )

  def score(hidden, targets, temperature):
    logits = model.unembed(config, params, hidden)
    logits = constrain(logits, ('batch', 'length', 'vocab'))
    return losses.Scores(
        logprobs=logprobs.log_prob_of(logits, targets, temperature),
        entropy=logprobs.entropy_of(
            jax.lax.stop_gradient(logits), temperature
        ),
        log_normalizer=jax.nn.logsumexp(
            logprobs.scale(logits, temperature), axis=-1
        ),
    )

  length = micro.targets.shape[1]
  if logits_chunk is None or logits_chunk == length:
    return score(hidden, micro.targets, micro.temperature)
  if logits_chunk < 1 or length % logits_chunk:
    raise ValueError(f'logits_chunk {logits_chunk} must divide T = {length}')

  def split(x):
    x = x.reshape(x.shape[0], -1, logits_chunk, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  # Recomputed in the backward pass, which would else keep every chunk.
  scores = jax.lax.map(
      jax.checkpoint(lambda chunk: score(*chunk)),
      (split(hidden), split(micro.targets), split(micro.temperature)),
  )
  return jax.tree.map(
      lambda x: jnp.moveaxis(x, 0, 1).reshape(micro.targets.shape), scores
  )
