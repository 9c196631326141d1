"""The config of a run: its fields, overrides by flags, and consistency checks."""
