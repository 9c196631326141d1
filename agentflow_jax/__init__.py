"""AgentFlow in JAX: train a planner in the flow, with Flow-GRPO."""
