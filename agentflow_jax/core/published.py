"""Networks of released models by name, to measure and compile without them."""

from agentflow_jax.core import model


def _qwen(**shape) -> model.ModelConfig:
  return model.ModelConfig(
      qkv_bias=True, rope_theta=1e6, norm_eps=1e-6, max_positions=32768, **shape
  )


# As in their config.json on the Hugging Face hub.
MODELS = {
    'smollm2-135m': model.ModelConfig(
        vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3,
        head_dim=64, d_ff=1536, max_positions=8192, rope_theta=1e5,
        norm_eps=1e-5,
    ),
    'qwen2.5-0.5b': _qwen(
        vocab_size=151936, d_model=896, n_layers=24, n_heads=14, n_kv_heads=2,
        head_dim=64, d_ff=4864,
    ),
    'qwen2.5-1.5b': _qwen(
        vocab_size=151936, d_model=1536, n_layers=28, n_heads=12, n_kv_heads=2,
        head_dim=128, d_ff=8960,
    ),
    'qwen2.5-3b': _qwen(
        vocab_size=151936, d_model=2048, n_layers=36, n_heads=16, n_kv_heads=2,
        head_dim=128, d_ff=11008,
    ),
    'qwen2.5-7b': _qwen(
        vocab_size=152064, d_model=3584, n_layers=28, n_heads=28, n_kv_heads=4,
        head_dim=128, d_ff=18944, tie_embeddings=False,
    ),
}
