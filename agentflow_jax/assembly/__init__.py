"""Builds the parts of a run from its config: models, tools, tasks, the agent."""
