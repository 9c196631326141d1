"""A process of a run: its command line, its peers, how it ends, and its clocks."""
