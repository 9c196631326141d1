"""Released networks and chips by name, to measure and compile without them."""

import dataclasses

from agentflow_jax.core import model

_GIB = 1 << 30


def _qwen(**shape) -> model.ModelConfig:
  return model.ModelConfig(
    qkv_bias=True, rope_theta=1e6, norm_eps=1e-6, max_positions=32768, **shape
  )


# As in their config.json on the Hugging Face hub.
MODELS = {
  'smollm2-135m': model.ModelConfig(
    vocab_size=49152,
    d_model=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    d_ff=1536,
    max_positions=8192,
    rope_theta=1e5,
    norm_eps=1e-5,
  ),
  'qwen2.5-0.5b': _qwen(
    vocab_size=151936,
    d_model=896,
    n_layers=24,
    n_heads=14,
    n_kv_heads=2,
    head_dim=64,
    d_ff=4864,
  ),
  'qwen2.5-1.5b': _qwen(
    vocab_size=151936,
    d_model=1536,
    n_layers=28,
    n_heads=12,
    n_kv_heads=2,
    head_dim=128,
    d_ff=8960,
  ),
  'qwen2.5-3b': _qwen(
    vocab_size=151936,
    d_model=2048,
    n_layers=36,
    n_heads=16,
    n_kv_heads=2,
    head_dim=128,
    d_ff=11008,
  ),
  'qwen2.5-7b': _qwen(
    vocab_size=152064,
    d_model=3584,
    n_layers=28,
    n_heads=28,
    n_kv_heads=4,
    head_dim=128,
    d_ff=18944,
    tie_embeddings=False,
  ),
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do, as its vendor publishes it.

  Attributes:
    memory: memory that programs may use [bytes]: for TPUs the size beyond which XLA
      refuses them, for GPUs the share that the launchers let JAX take (92%).
    flops: dense bfloat16 throughput [FLOP/s].
    bandwidth: bandwidth of its memory [bytes/s].
    links: bandwidth to the other chips of its slice or node, one way, all links
      together [bytes/s].
    kinds: names of the chip in jax.Device.device_kind.
  """

  memory: float
  flops: float
  bandwidth: float
  links: float
  kinds: tuple[str, ...] = ()


CHIPS = {
  'v5p': Chip(95.7 * _GIB, 459e12, 2765e9, 600e9, ('TPU v5', 'TPU v5p')),
  'v5e': Chip(15.75 * _GIB, 197e12, 819e9, 200e9, ('TPU v5 lite', 'TPU v5e')),
  'v6e': Chip(31.25 * _GIB, 918e12, 1640e9, 448e9, ('TPU v6 lite', 'TPU v6e')),
  'h100': Chip(73 * _GIB, 989e12, 3350e9, 450e9, ('NVIDIA H100 80GB HBM3',)),
  'h200': Chip(129 * _GIB, 989e12, 4800e9, 450e9, ('NVIDIA H200',)),
  # Not a chip: a placeholder to try the program with, whose figures are made up.
  'cpu': Chip(16 * _GIB, 1e11, 1e10, 1e10),
}
