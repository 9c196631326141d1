"""Tensors and train state on disk."""
