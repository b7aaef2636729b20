"""Where are the figures of heads and layers? In `bertology.results.figures`, which can also be imported from here."""

from .results.figures import *  # noqa: F403
