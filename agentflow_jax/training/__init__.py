"""Where text meets arrays: the planner, batches, the step, evaluation."""
