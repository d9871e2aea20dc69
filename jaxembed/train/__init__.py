"""Training: optimisers, the update, the loop, checkpoints of a run, plans."""
