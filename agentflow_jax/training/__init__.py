"""The loop of a run: data, update, evaluation, commit; what it writes."""
