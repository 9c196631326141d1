"""Environments: worlds with state, in which a rollout acts."""
