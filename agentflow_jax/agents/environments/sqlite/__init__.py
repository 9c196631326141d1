"""Worlds in a SQLite database."""
