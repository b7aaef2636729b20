"""Where are the metrics? In `bertology.data.metrics`, which can also be imported from here."""

from .data.metrics import *  # noqa: F403
