"""Where training examples come from, and in what batches they are drawn."""
