"""Data, training loop, checkpoints and the run that ties them together."""
