"""How are a model's insides read or edited while it runs?

    with tap(anatomy, "heads", read=look):
        model(**batch)

The folder is the sole owner of every hook and of every switch of the attention implementation:
`calls` counts which layer is running, `hooks` taps blocks and heads (`products` those whose projection is no module),
`maps` taps attention maps by one of two routes: `interface` for models on transformers' attention interface, `softmax`
for all others, where `bands` lays out the maps of attention over windows. `recording` keeps what a pass made, for
`replay` to take the pass up half-way; `tail` leaves out what nobody reads of the last block.
"""

from .hooks import check_rows, tap
from .map_reader import attention_entropies
from .position_bias import narrow_biases, takes_bias
from .restore import uncached, undisturbed
from .resume import Recording, copied, first_position_only, matrix, recorded, tail_noted
from .silence import silenced

__all__ = [
    "Recording",
    "attention_entropies",
    "check_rows",
    "copied",
    "first_position_only",
    "matrix",
    "narrow_biases",
    "recorded",
    "silenced",
    "tail_noted",
    "takes_bias",
    "tap",
    "uncached",
    "undisturbed",
]
