"""Text only: the four modules, memory, tools, rewards and the rollout."""
