"""What do heads and layers do? One question a file."""
