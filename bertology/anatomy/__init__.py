"""Where are the heads? The only room that knows the names of every architecture."""
