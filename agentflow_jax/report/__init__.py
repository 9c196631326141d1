"""Pages and tables about runs, made from the files of a workdir alone."""
