"""Says before a run whether it fits a topology, from compiled programs."""
