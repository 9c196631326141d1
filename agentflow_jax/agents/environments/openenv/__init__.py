"""Worlds on servers of OpenEnv."""
