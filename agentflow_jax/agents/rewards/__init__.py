"""Rewards: verifiable outcome rewards, looked up by name in `registry`."""
