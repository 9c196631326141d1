"""Checks before a run, from compiled programs, whether it fits a topology."""
