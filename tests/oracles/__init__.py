"""Slow twins: every measure once more, in loops written from the equation."""
