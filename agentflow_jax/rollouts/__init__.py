"""Concurrent rollouts, their journal and files, and totals over them."""
