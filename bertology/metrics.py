"""Where are the metrics? In `bertology.data.metrics` and `bertology.data.answers`; they can be imported from here."""

from .data.answers import logit_difference as logit_difference
from .data.answers import probability as probability
from .data.metrics import *  # noqa: F403
