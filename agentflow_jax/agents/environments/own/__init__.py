"""Worlds that a user's own class makes."""
