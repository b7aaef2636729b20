"""What goes in? Batches, padding, losses, metrics and classes of tokens."""
