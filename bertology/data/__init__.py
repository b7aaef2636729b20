"""The model's inputs and outputs: batches, padding, losses, metrics and token classes."""
