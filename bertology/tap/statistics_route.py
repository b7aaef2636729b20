"""Statistics of plain attention without its map: tile by tile on a CPU, by fused kernels on a GPU.

Which way is taken was measured (`benchmarks/entropy_by_length.py`). On a CPU a second call of a fused kernel costs as
much as the attention itself, and tiles a third of it; on a GPU tiles of single heads would leave most of it idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..anatomy.sites import Site
from .fused_attention import HALVES, attend_fused, is_fine_in_half
from .map_reader import Reading
from .plain_inputs import Plain
from .row_statistics import RowStatistics, Wanted, apart, together
from .tiled_attention import attend_in_tiles

# The fewest keys for which it pays not to make a map, by device: with fewer, the proof that attention is plain costs
# more than it saves. On other devices maps are read in blocks.
SHORTEST = {"cpu": 256, "cuda": 256}


def may_go_without_map(query: Tensor, key: Tensor) -> bool:
    """Whether statistics of attention with these inputs are computed without a map, if it is plain."""
    device = query.device.type
    if device not in SHORTEST or key.shape[2] < SHORTEST[device]:
        return False
    return query.dtype in (torch.float32, torch.float64) or (device == "cuda" and query.dtype in HALVES)


def attend_without_map(
    plain: Plain, readings: Sequence[tuple[Reading, Site]], weigh: Callable[[Plain], Tensor]
) -> Tensor | None:
    """[batch, query, head, dim]: the output, after the statistics were given to their readers; or None.

    `weigh` gives the weights of the model's own function, [batch, head, query, key].
    """
    if plain.mask is not None:
        mask = plain.mask[..., : plain.key.shape[2]]
        plain = plain._replace(mask=mask)
        if bool(torch.isneginf(mask.amax(-1)).any()):
            return None  # a query that sees no key: the model's own function may give NaN
    shape = (*plain.query.shape[:3], plain.key.shape[2])
    wanted = [reading.wanted(site, shape) for reading, site in readings]
    found = _attend(plain, together(wanted), weigh)
    if found is None:
        return None
    for (reading, site), own in zip(readings, apart(found[1], wanted), strict=True):
        reading.give_statistics(site, own)
    return found[0]


def _attend(plain: Plain, wanted: Wanted, weigh: Callable[[Plain], Tensor]) -> tuple[Tensor, RowStatistics] | None:
    if plain.query.device.type == "cpu":
        return attend_in_tiles(plain, wanted)
    if plain.query.dtype in HALVES and wanted.entropy and not is_fine_in_half(plain, weigh):
        return None
    return attend_fused(plain, wanted)
