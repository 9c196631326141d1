"""A process of a run: command line, peers, workdir lock, exit codes, clocks."""
