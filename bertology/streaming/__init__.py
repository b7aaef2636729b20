"""What is it over a data set? Accumulators, the loop over batches, and checkpoints."""
