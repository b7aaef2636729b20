"""How are a model's insides read or edited while it runs?

    with tap(anatomy, "heads", read=look):
        model(**batch)

This folder alone sets hooks and switches attention implementations. `calls` counts which layer is running. `hooks` taps
heads and MLPs, `block_hooks` hidden states; where a projection is not a module, `function_mode` sees its product.
`attention_maps` taps attention maps by one of two routes: `interface_route` for models on transformers' attention
interface, `softmax_route` for all others; statistics of maps, such as entropies, need no map where attention is plain
(`statistics_route`). `arriving` weighs maps by the norms of what arrives; `mixing` parts what attention blocks add up,
and `block_sums` finds where they do. `gates` scales or replaces heads' outputs. `resume` records a pass and resumes it
at a later layer, and `branches` runs copies of a batch under several `variants` of the model from there. `recompute`
repeats edits in parts that run again in the backward pass. `edits` notes which edits are open. `restore` leaves a model
as it was found; `wrapped` lets it run without other processes. `private_api` holds the private names of torch and
transformers.
"""

from .arriving import output_weights, shares
from .edits import edits_of
from .hooks import check_rows, is_tapped, tap, tap_entropies, tap_states
from .mixing import Mixed
from .position_bias import narrow_biases, takes_bias
from .restore import uncached, uncompiled, undisturbed
from .resume import Recording, copied, first_position_only, matrix, recorded, tail_noted
from .row_statistics import RowStatistics, Wanted, apart, attention_entropies, of_map, together
from .silence import silenced
from .threads import one_thread
from .wrapped import divided_over, whole_weights

__all__ = [
    "Mixed",
    "Recording",
    "RowStatistics",
    "Wanted",
    "apart",
    "attention_entropies",
    "check_rows",
    "copied",
    "divided_over",
    "edits_of",
    "first_position_only",
    "is_tapped",
    "matrix",
    "narrow_biases",
    "of_map",
    "one_thread",
    "output_weights",
    "recorded",
    "shares",
    "silenced",
    "tail_noted",
    "takes_bias",
    "tap",
    "tap_entropies",
    "tap_states",
    "together",
    "uncached",
    "uncompiled",
    "undisturbed",
    "whole_weights",
]
