"""Sampling from the policy: prefill, decode and request scheduling."""
