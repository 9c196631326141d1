"""AgentFlow in JAX: train a planner in the flow, with Flow-GRPO."""

# The one place of the version. pyproject.toml reads it, without importing the package;
# a checkout on the path and Bazel have no metadata of an installation to ask.
__version__ = '0.1.0'
