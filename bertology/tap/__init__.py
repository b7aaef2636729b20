"""How are a model's insides read or edited while it runs?

    with tap(anatomy, "heads", read=look):
        model(**batch)

The folder is the sole owner of every hook and of every switch of the attention implementation:
`calls` counts which layer is running, `hooks` taps blocks and heads (`products` those whose projection is no module),
`maps` taps attention maps by one of two routes: `interface` for models on transformers' attention interface, `softmax`
for all others, where `bands` lays out the maps of attention over windows. `replay` takes a pass up half-way.
"""

from .biases import narrow_biases, takes_bias
from .hooks import tap
from .reading import attention_entropies
from .replay import Recording, copied, matrix, recorded
from .silence import silenced
from .still import uncached, undisturbed

__all__ = [
    "Recording",
    "attention_entropies",
    "copied",
    "matrix",
    "narrow_biases",
    "recorded",
    "silenced",
    "takes_bias",
    "tap",
    "uncached",
    "undisturbed",
]
