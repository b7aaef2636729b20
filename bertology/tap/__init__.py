"""How are a model's insides read or edited while it runs?

    with tap(anatomy, "heads", read=look):
        model(**batch)

The folder is the sole owner of every hook and of every switch of the attention implementation:
`calls` counts which layer is running, `hooks` taps blocks and heads, `maps` taps attention maps.
"""

from .hooks import tap
from .still import undisturbed

__all__ = ["tap", "undisturbed"]
