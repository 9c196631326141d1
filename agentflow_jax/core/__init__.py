"""Arrays only: model, scoring, losses, packed batches and the update."""
