"""The tool python: programs of a model, run in a sandbox."""
