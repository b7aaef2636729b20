"""Where are the losses? In `bertology.data.losses`, which can also be imported from here."""

from .data.losses import *  # noqa: F403
