"""What a reader can ask of each row of an attention map, where it does not need the map.

The entropy of a row, its largest weight, the mean distance between query and key, its weight of one key, and sums of
weights over keys: a fused kernel, or a pass over tiles of scores, gives them without keeping a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Wanted(NamedTuple):
    """Which statistics of each row of an attention map a reader wants."""

    entropy: bool = False
    largest: bool = False
    distance: bool = False
    columns: Tensor | None = None
    """[batch, key, column]: the coefficients of the sums over keys."""


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of a block of rows of an attention map; what was not wanted is None."""

    shape: tuple[int, int, int, int]
    """The shape of these rows of the map: batch, head, query, key."""
    device: torch.device
    at: Callable[[Tensor], Tensor]
    """[batch, head, query]: each query's weight of one key, whose position is given as [batch or 1, query]."""
    entropy: Tensor | None = None
    """[batch, head, query], nats"""
    largest: Tensor | None = None
    """[batch, head, query]: the largest weight."""
    distance: Tensor | None = None
    """[batch, head, query]: the mean of |query - key|, both counted from the first token."""
    sums: Tensor | None = None
    """[batch, head, query, column]: the sums of weights times the coefficients of their keys."""


# So few weights that to call one function of torch, and not four, matters more.
FEW = 2**12
# So few weights that another tensor of them is small beside a model.
PRODUCT = 2**22


def attention_entropies(weights: Tensor) -> Tensor:
    """[..., query]: -Σ p ln p over the last axis of attention weights `[..., query, key]`, with 0 ln 0 = 0."""
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    if wide.device.type != "cpu" or wide.requires_grad or wide.numel() < FEW:
        return torch.special.entr(wide).sum(-1)
    # On a CPU torch computes `entr` number by number, which takes twice as long. To add the smallest number changes no
    # weight but 0, and leaves a negative one without a logarithm. The entropy of one key alone is 0, and not -0.
    return 0 - (wide + torch.finfo(wide.dtype).tiny).log_().mul_(wide).sum(-1)


def of_map(weights: Tensor, rows: slice, wanted: Wanted) -> RowStatistics:
    """The statistics of the rows `rows` of a map, from their weights `[batch, head, query, key]`."""

    def at(keys: Tensor) -> Tensor:
        places = keys[:, None, :, None].expand(*weights.shape[:3], 1)
        return weights.gather(3, places).squeeze(3)

    entropy = attention_entropies(weights) if wanted.entropy else None
    largest = weights.amax(-1) if wanted.largest else None
    distance = sums = None
    if wanted.distance:
        far = distances(rows, slice(0, weights.shape[3]), weights)
        # The product of each query's row with its own distances needs no third tensor of the map's size, but is slower.
        few = weights.numel() <= PRODUCT
        distance = (weights * far).sum(-1) if few else torch.einsum("bhqk,qk->bhq", weights, far)
    if wanted.columns is not None:
        sums = weights @ wanted.columns[:, None].to(weights)
    batch, heads, queries, keys = weights.shape
    return RowStatistics((batch, heads, queries, keys), weights.device, at, entropy, largest, distance, sums)


def distances(rows: slice, keys: slice, like: Tensor) -> Tensor:
    """[query, key]: how far apart the queries and keys of a block are, in the type of another tensor."""
    queries = torch.arange(rows.start, rows.stop, device=like.device)
    return (queries[:, None] - torch.arange(keys.start, keys.stop, device=like.device)).abs().to(like.dtype)


def together(all_wanted: Sequence[Wanted]) -> Wanted:
    """What several readers want."""
    columns = [wanted.columns for wanted in all_wanted if wanted.columns is not None]
    return Wanted(
        any(wanted.entropy for wanted in all_wanted),
        any(wanted.largest for wanted in all_wanted),
        any(wanted.distance for wanted in all_wanted),
        torch.cat(columns, -1) if columns else None,
    )


def apart(found: RowStatistics, all_wanted: Sequence[Wanted]) -> list[RowStatistics]:
    """What was found for several readers, for each of them."""
    shares, start = [], 0
    for wanted in all_wanted:
        sums = None
        if wanted.columns is not None:
            assert found.sums is not None
            sums = found.sums[..., start : start + wanted.columns.shape[-1]]
            start += wanted.columns.shape[-1]
        shares.append(replace(found, sums=sums))
    return shares
