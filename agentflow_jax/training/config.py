"""The path that the schema of configs had before it moved to a room of its own."""

raise ImportError(
  'agentflow_jax.training.config is agentflow_jax.config.schema now: write "from'
  ' agentflow_jax.config import schema as c"'
)
