"""Worlds on the servers of EnterpriseOps-Gym (arXiv 2603.13594)."""
