"""Masks of high attention and of near leaves, how well they agree, and null models of attention.

The third null model is the same architecture with random weights: `bertology.syntax.randomized`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, ShapeError, all_finite, check_least, checked, how_many

QUARTER = 0.25
"""The share of pairs that count as high in attention, and as near in the tree: Chen et al. (2022) use the third
quartile of attention and the first quartile of distance."""


class HighAttention(NamedTuple):
    """Where the attention of some maps is high."""

    mask: Tensor
    """[..., leaf, leaf] bool."""
    blank: Tensor
    """[...] bool: which maps are 0 everywhere. They have no score."""


class CatCounts(NamedTuple):
    """The numbers of pairs of leaves in a CAT-score, which is `matched / either` if `either` is not 0."""

    matched: Tensor
    """[...] int64: the number of pairs that have high attention and are near in the tree."""
    either: Tensor
    """[...] int64: the number of pairs that have high attention, are near, or both; 0 for a map that is left out."""


def linear_quantile(values: Tensor, quantile: float) -> Tensor:
    """[...]: a quantile of [..., entry], with linear interpolation: the same as `numpy.quantile(method="linear")`.

    Raises `DataError` for a quantile that is not between 0 and 1, and for no entries.

        >>> import torch
        >>> linear_quantile(torch.tensor([[4.0, 1.0, 2.0]]), 0.75)
        tensor([3.])
    """
    count = values.shape[-1]
    if not 0 <= quantile <= 1 or count == 0:
        raise DataError(f"wanted a quantile from 0 to 1 of some entries, got {quantile} of {count}")
    place = quantile * (count - 1)
    below = min(math.floor(place), count - 1)
    share = place - below
    values = as_floats(values.detach())
    low, high = (_partitioned if values.device.type == "cpu" else _selected)(values, below)
    gap = high - low
    return low + gap * share if share < 0.5 else high - gap * (1 - share)


@checked
def attention_mask(attention: Tensor, *, quantile: float = QUARTER, valid: Tensor | None = None) -> HighAttention:
    """Where attention is above its quantile 1 - `quantile`, separately in each map: M_A = [A > Q(A)].

    Args:
        attention: [..., leaf, leaf]: maps of one snippet.
        quantile: the share of pairs that count as high; ties can make it smaller.
        valid: [leaf, leaf] bool: the pairs that count, also in the quantile: `visible` for a decoder. By default all.

    Raises `ShapeError` for other shapes, and `DataError` for attention that is not finite where it counts.

        >>> import torch
        >>> attention_mask(torch.tensor([[0.9, 0.1], [0.2, 0.3]])).mask
        tensor([[ True, False],
                [False, False]])
    """
    values, mask = _entries(as_floats(attention.detach()), valid, quantile, "attention")
    check_finite(values)
    if values.shape[-1] == 0:
        blank = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
        return HighAttention(torch.zeros_like(attention, dtype=torch.bool), blank)
    high = values > linear_quantile(values, 1 - quantile)[..., None]
    blank = (values.amax(-1) == 0) & (values.amin(-1) == 0)
    return HighAttention(_put_back(high, mask, attention.shape), blank)


@checked
def distance_mask(distance: Tensor, *, quantile: float = QUARTER, valid: Tensor | None = None) -> Tensor:
    """[leaf, leaf] bool: where leaves are nearer than the quantile of their distances: M_D = [D < Q(D)].

    Distances are integers with many ties, so the share of pairs below the quantile can be much smaller than `quantile`,
    or even 0. Raises `ShapeError` for other shapes than [leaf, leaf].

        >>> import torch
        >>> distance = (torch.arange(4)[:, None] - torch.arange(4)).abs()
        >>> distance_mask(distance).int()
        tensor([[1, 0, 0, 0],
                [0, 1, 0, 0],
                [0, 0, 1, 0],
                [0, 0, 0, 1]], dtype=torch.int32)
    """
    values, mask = _entries(distance.detach().to(torch.float64), valid, quantile, "distance")
    if values.shape[-1] == 0:
        return torch.zeros_like(distance, dtype=torch.bool)
    return _put_back(values < linear_quantile(values, quantile)[..., None], mask, distance.shape)


@checked
def overlap(high: HighAttention, near: Tensor) -> CatCounts:
    """Count the pairs of each map that have high attention and are near, and the pairs that satisfy at least one.

    `near` is [leaf, leaf] bool, from `distance_mask`. The masks of a snippet can be used for several maps and null
    models.

        >>> import torch
        >>> near = torch.eye(2, dtype=torch.bool)
        >>> overlap(attention_mask(torch.tensor([[0.9, 0.1], [0.2, 0.3]])), near)
        CatCounts(matched=tensor(1), either=tensor(2))
    """
    if high.mask.shape[-2:] != near.shape:
        raise ShapeError(f"attention is over {list(high.mask.shape[-2:])} leaves, distances over {list(near.shape)}")
    mask, near = high.mask.flatten(-2), near.to(high.mask.device).flatten()
    matched = _many(mask & near)
    either = _many(mask) + near.sum() - matched
    return CatCounts(matched.masked_fill(high.blank, 0), either.masked_fill(high.blank, 0))


@checked
def cat_counts(
    attention: Tensor, distance: Tensor, *, quantile: float = QUARTER, valid: Tensor | None = None
) -> CatCounts:
    """Count the pairs of leaves in the CAT-score of each map (Chen et al. 2022).

    M_A = [A > Q_.75(A)], M_D = [D < Q_.25(D)], both strict and over all pairs of leaves, including the pair of a leaf
    with itself. The score of a snippet is |M_A ∧ M_D| / |M_A ∨ M_D|. A map that is 0 everywhere, or that has no pair of
    either kind, has both counts 0 and should be left out of scores. A constant map should not: its score is 0.

    Args:
        attention: [..., leaf, leaf]: maps of one snippet, over the same leaves as `distance`.
        distance: [leaf, leaf]: the distances of leaves in the tree.
        quantile: the share of pairs that count as high in attention, and as near.
        valid: [leaf, leaf] bool: the pairs that count: `visible` for a decoder. By default all.

    Raises `ShapeError` for other shapes, and `DataError` for attention that is not finite.

        >>> import torch
        >>> distance = (torch.arange(4)[:, None] - torch.arange(4)).abs()
        >>> cat_counts(torch.exp(-distance.double()), distance)
        CatCounts(matched=tensor(4), either=tensor(4))
    """
    high = attention_mask(attention, quantile=quantile, valid=valid)
    return overlap(high, distance_mask(distance, quantile=quantile, valid=valid))


def as_floats(x: Tensor) -> Tensor:
    """Convert integers and half-precision floats to float32; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.promote_types(x.dtype, torch.float32))


def check_finite(values: Tensor) -> None:
    """Raise `DataError` for attention weights that are not finite."""
    if not all_finite(values):
        broken = int((~values.isfinite()).sum())
        raise DataError(f"{broken} attention weights are not finite: look for NaN or overflow in the model's weights")


def _entries(x: Tensor, valid: Tensor | None, quantile: float, what: str) -> tuple[Tensor, Tensor | None]:
    """[..., entry]: the pairs that count, and their flat indices; None in place of the indices if all pairs count."""
    if x.dim() < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"{what} must be [..., leaf, leaf], got {list(x.shape)}")
    if not 0 <= quantile <= 1:
        raise DataError(f"quantile, the share of pairs that are high or near, must be from 0 to 1, got {quantile}")
    if valid is None:
        return x.flatten(-2), None
    if valid.shape != x.shape[-2:] or valid.dtype != torch.bool:
        raise ShapeError(f"valid must be {list(x.shape[-2:])} bool, got {list(valid.shape)} {valid.dtype}")
    mask = valid.to(x.device).flatten().nonzero()[:, 0]
    return x.flatten(-2).index_select(-1, mask), mask


def _many(mask: Tensor) -> Tensor:
    """[...] int64: how many of [..., entry] bool are true. The sum over bytes is five times as fast."""
    return mask.view(torch.uint8).sum(-1, dtype=torch.int32).to(torch.int64)


def _put_back(found: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor:
    """[..., leaf, leaf]: pairs that do not count are False."""
    if mask is None:
        return found.view(shape)
    pairs = torch.zeros(*shape[:-2], shape[-1] ** 2, dtype=torch.bool, device=found.device)
    return pairs.index_copy_(-1, mask, found).view(shape)


def _partitioned(values: Tensor, below: int) -> tuple[Tensor, Tensor]:
    """Entries `below` and `below + 1` of the sorted values. NumPy's partition takes a tenth of the time of torch."""
    parted = np.partition(values.numpy(), below, axis=-1)
    low, above = parted[..., below], parted[..., below + 1 :]
    high = above.min(-1) if above.shape[-1] else low
    return torch.as_tensor(np.asarray(low)), torch.as_tensor(np.asarray(high))


def _selected(values: Tensor, below: int) -> tuple[Tensor, Tensor]:
    """The same as `_partitioned`, on any device."""
    low = values.kthvalue(below + 1, -1).values
    return low, values.kthvalue(min(below + 2, values.shape[-1]), -1).values


@checked
def shuffled(x: Tensor, *, snippet: int, seed: int = 0, valid: Tensor | None = None) -> Tensor:
    """[..., leaf, leaf]: maps with randomly permuted pairs of leaves, the same permutation for all maps.

    A quantile does not depend on the order of the pairs. So the mask of a shuffled map is the shuffled mask of the map,
    and it is faster to shuffle the mask. It is equivalent, and faster still, to shuffle the mask of the distances
    instead of the masks of all heads. The score is 1/7 on average if both masks have a quarter of the pairs, and lower
    if ties make a mask smaller.

    Args:
        x: [..., leaf, leaf]: attention, its mask (`attention_mask(...).mask`), or a mask of distances.
        snippet: the number of the snippet. Each snippet has its own permutation, which depends neither on the device
            nor on the order of the snippets.
        seed: the seed of the permutations.
        valid: [leaf, leaf] bool: the pairs that are permuted: `visible` for a decoder; by default all.

    Raises `ShapeError` for other shapes.

        >>> import torch
        >>> shuffled(torch.arange(4).view(2, 2), snippet=0).sort().values.sum().item()
        6
    """
    check_least("snippet", snippet, 0)
    leaves = _leaves(x, valid)
    where = None if valid is None else valid.flatten().nonzero()[:, 0].to(x.device)
    state = int(np.random.SeedSequence([seed, snippet]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(state)
    order = torch.randperm(leaves * leaves if where is None else len(where), generator=generator).to(x.device)
    flat = x.flatten(-2)
    if where is None:
        return flat.index_select(-1, order).view(x.shape)
    return flat.index_copy(-1, where, flat.index_select(-1, where[order])).view(x.shape)


class OffsetMeans:
    """Attention that depends only on the signed offset of two leaves in the text: the mean attention at each offset.

    The mean can be taken over one snippet, or over all snippets in a first pass; then it is the attention of a model
    that looks only at positions. The sums are over pairs of leaves, so the result does not depend on how the snippets
    are split into parts. To leave out leaves by type, add the maps of all leaves, and then leave out leaves of the map
    that `map` returns.

        >>> import torch
        >>> means = OffsetMeans()
        >>> means.add(torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.7, 0.4], [0.0, 0.1, 0.6]]))
        >>> means.map(2)
        tensor([[0.6000, 0.3000],
                [0.2000, 0.6000]], dtype=torch.float64)
    """

    total: Tensor
    """[..., offset] float64: the sum of the attention at each offset j - i, from the lowest to the highest offset."""
    pairs: Tensor
    """[offset] int64: the number of pairs of leaves at each offset."""

    def __init__(self) -> None:
        self.total, self.pairs = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)

    @checked
    def add(self, attention: Tensor, *, valid: Tensor | None = None) -> None:
        """Add the maps of one snippet, [..., leaf, leaf]; the number of maps must be the same in each call.

        `valid` [leaf, leaf] bool marks the pairs that count. Raises `ShapeError` for other shapes, and `DataError` for
        attention that is not finite where it counts.
        """
        leaves = _leaves(attention, valid)
        counted = torch.ones(leaves, leaves, dtype=torch.bool) if valid is None else valid.cpu()
        values = attention.detach() if valid is None else attention.detach().masked_fill(~valid.to(attention.device), 0)
        new = OffsetMeans()
        new.total, new.pairs = slanted(values).sum(-2).cpu(), slanted(counted).sum(-2).to(torch.int64)
        if not new.total.isfinite().all():
            raise DataError("attention weights are not finite: look for NaN or overflow in the model's weights")
        self.merge(new)

    @checked
    def merge(self, other: OffsetMeans) -> None:
        """Add the sums over other snippets, for the same number of maps. Raises `ShapeError` for another number."""
        if not len(other.pairs):
            return
        if not len(self.pairs):
            self.total, self.pairs = other.total.clone(), other.pairs.clone()
            return
        if self.total.shape[:-1] != other.total.shape[:-1]:
            raise ShapeError(f"wanted {list(self.total.shape[:-1])} maps, got {list(other.total.shape[:-1])}")
        width = max(len(self.pairs), len(other.pairs))
        self.total = _widened(self.total, width) + _widened(other.total, width)
        self.pairs = _widened(self.pairs, width) + _widened(other.pairs, width)

    @checked
    def map(self, leaves: int, *, dtype: torch.dtype = torch.float64, device: Any = None) -> Tensor:
        """[..., leaf, leaf]: the map of a snippet with this number of leaves; 0 at offsets without any pair.

        Raises `DataError` for more leaves than the longest snippet that was added.
        """
        middle = len(self.pairs) // 2
        if leaves > middle + 1 or not len(self.pairs):
            raise DataError(
                f"wanted a map of {how_many(leaves, 'leaf')}, but the longest snippet that was added has "
                f"{middle + 1 if len(self.pairs) else 0}: add a snippet that is as long"
            )
        means = (self.total / self.pairs.clamp_min(1)).to(dtype)
        place = torch.arange(leaves)
        found = means.to(device).index_select(-1, (place - place[:, None] + middle).flatten().to(device))
        return found.view(*means.shape[:-1], leaves, leaves)


@checked
def positional(attention: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """[..., leaf, leaf]: maps in which each value is replaced by the map's mean at the same signed offset.

    Their CAT-score shows how much of a map's score is explained by positions alone. Here the means are over one map;
    `OffsetMeans` takes them over snippets. Pairs that do not count are 0. Raises `ShapeError` and `DataError` as
    `OffsetMeans.add` does.

        >>> import torch
        >>> positional(torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
        tensor([[0.7500, 0.5000],
                [0.0000, 0.7500]])
    """
    means = OffsetMeans()
    means.add(attention, valid=valid)
    found = means.map(attention.shape[-1], dtype=as_floats(attention).dtype, device=attention.device)
    return found if valid is None else found.masked_fill(~valid.to(found.device), 0)


def slanted(x: Tensor) -> Tensor:
    """[..., leaf, offset] float64: maps whose columns are offsets j - i, from -(leaf - 1) to leaf - 1.

    Offsets at which a row has no leaf are 0.
    """
    leaves = x.shape[-1]
    new = torch.zeros(*x.shape[:-1], max(0, 2 * leaves - 1), dtype=torch.float64, device=x.device)
    if x.numel():
        # Entry (i, j) of a map belongs at i (2 n - 1) + j - i + n - 1: rows that start 2 n - 2 apart.
        stride = (*new.stride()[:-2], 2 * leaves - 2, 1)
        new.as_strided(x.shape, stride, leaves - 1).copy_(x)
    return new


def _widened(x: Tensor, width: int) -> Tensor:
    side = (width - x.shape[-1]) // 2
    return torch.nn.functional.pad(x, (side, side))


def _leaves(x: Tensor, valid: Tensor | None) -> int:
    if x.dim() < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"wanted maps [..., leaf, leaf], got {list(x.shape)}")
    if valid is not None and (valid.shape != x.shape[-2:] or valid.dtype != torch.bool):
        raise ShapeError(f"valid must be {list(x.shape[-2:])} bool, got {list(valid.shape)} {valid.dtype}")
    return x.shape[-1]
