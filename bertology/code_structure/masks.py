"""Where is a snippet's attention high, where are its leaves near in the tree, and how much do the two agree?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, ShapeError

QUARTER = 0.25
"""The share of pairs that counts as high in attention, and as near in the tree (Chen et al. 2022: the third quartile of
attention, the first of distance)."""


class HighAttention(NamedTuple):
    """Where the attention of some maps is high."""

    mask: Tensor
    """[..., leaf, leaf] bool."""
    blank: Tensor
    """[...] bool: the maps that are 0 everywhere, which no score is made of."""


class CatCounts(NamedTuple):
    """How many pairs of leaves a CAT-score is made of: `matched / either`, where `either` is not 0."""

    matched: Tensor
    """[...] int64: pairs of high attention that are near in the tree."""
    either: Tensor
    """[...] int64: pairs with one of the two, or both; 0 for a map that is left out."""


def linear_quantile(values: Tensor, quantile: float) -> Tensor:
    """[...]: a quantile of [..., entry], between two values in proportion: that of `numpy.quantile(method="linear")`.

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


def attention_mask(attention: Tensor, *, quantile: float = QUARTER, valid: Tensor | None = None) -> HighAttention:
    """Where attention is above its quantile 1 - `quantile`, in each map by itself: M_A = [A > Q(A)].

    Args:
        attention: [..., leaf, leaf]: maps of one snippet.
        quantile: the share of pairs that are to be high; with ties they are fewer.
        valid: [leaf, leaf] bool: the pairs that count, also in the quantile: `visible` for a decoder. All, without it.

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


def distance_mask(distance: Tensor, *, quantile: float = QUARTER, valid: Tensor | None = None) -> Tensor:
    """[leaf, leaf] bool: where leaves are nearer than the quantile of their distances: M_D = [D < Q(D)].

    Distances are whole numbers with many ties, so that pairs below their quantile can be far fewer than `quantile`
    says, and none at all. Raises `ShapeError` for other shapes than [leaf, leaf].

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


def overlap(high: HighAttention, near: Tensor) -> CatCounts:
    """Count the pairs that are of high attention and near, and those that are one of the two, in each map.

    `near` is [leaf, leaf] bool, of `distance_mask`. So several maps, and null models, share the masks of a snippet.

        >>> import torch
        >>> near = torch.eye(2, dtype=torch.bool)
        >>> overlap(attention_mask(torch.tensor([[0.9, 0.1], [0.2, 0.3]])), near)
        CatCounts(matched=tensor(1), either=tensor(2))
    """
    if high.mask.shape[-2:] != near.shape:
        raise ShapeError(f"attention is of {list(high.mask.shape[-2:])} leaves, distances of {list(near.shape)}")
    mask, near = high.mask.flatten(-2), near.to(high.mask.device).flatten()
    matched = _many(mask & near)
    either = _many(mask) + near.sum() - matched
    return CatCounts(matched.masked_fill(high.blank, 0), either.masked_fill(high.blank, 0))


def cat_counts(
    attention: Tensor, distance: Tensor, *, quantile: float = QUARTER, valid: Tensor | None = None
) -> CatCounts:
    """Count what the CAT-score of each map is made of (Chen et al. 2022): pairs of high attention, and near pairs.

    M_A = [A > Q_.75(A)], M_D = [D < Q_.25(D)], both strict and over all pairs of leaves, each with itself included;
    the score of a snippet is |M_A ∧ M_D| / |M_A ∨ M_D|. A map that is 0 everywhere, or in which no pair is either,
    counts 0 of 0: it is to be left out. One that is constant is not: it matches nothing.

    Args:
        attention: [..., leaf, leaf]: maps of one snippet, over leaves as in `distance`.
        distance: [leaf, leaf]: how far apart leaves are in the tree.
        quantile: the share of pairs that are to be high in attention, and near.
        valid: [leaf, leaf] bool: the pairs that count: `visible` for a decoder. All, without it.

    Raises `ShapeError` for other shapes, and `DataError` for attention that is not finite.

        >>> import torch
        >>> distance = (torch.arange(4)[:, None] - torch.arange(4)).abs()
        >>> cat_counts(torch.exp(-distance.double()), distance)
        CatCounts(matched=tensor(4), either=tensor(4))
    """
    high = attention_mask(attention, quantile=quantile, valid=valid)
    return overlap(high, distance_mask(distance, quantile=quantile, valid=valid))


def as_floats(x: Tensor) -> Tensor:
    """In float32, or in float64 if it is: what whole numbers and half floats are computed in."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.promote_types(x.dtype, torch.float32))


def check_finite(values: Tensor) -> None:
    """Raise `DataError` for attention weights that are not finite."""
    # A sum is one pass; only where it is not finite is it worth looking at every entry.
    if not values.sum().isfinite() and not values.isfinite().all():
        broken = int((~values.isfinite()).sum())
        raise DataError(f"{broken} attention weights are not finite: look for NaN or overflow in the model's weights")


def _entries(x: Tensor, valid: Tensor | None, quantile: float, what: str) -> tuple[Tensor, Tensor | None]:
    """[..., entry]: the pairs that count, and which these are, flat, if not all."""
    if x.dim() < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"{what} must be [..., leaf, leaf], got {list(x.shape)}")
    if not 0 <= quantile <= 1:
        raise DataError(f"quantile is the share of pairs that are high, and near, from 0 to 1, got {quantile}")
    if valid is None:
        return x.flatten(-2), None
    if valid.shape != x.shape[-2:] or valid.dtype != torch.bool:
        raise ShapeError(f"valid must be {list(x.shape[-2:])} bool, got {list(valid.shape)} {valid.dtype}")
    mask = valid.to(x.device).flatten().nonzero()[:, 0]
    return x.flatten(-2).index_select(-1, mask), mask


def _many(mask: Tensor) -> Tensor:
    """[...] int64: how many of [..., entry] bool are true. As bytes they add up five times as fast."""
    return mask.view(torch.uint8).sum(-1, dtype=torch.int32).to(torch.int64)


def _put_back(found: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor:
    """[..., leaf, leaf]: pairs that do not count are False."""
    if mask is None:
        return found.view(shape)
    whole = torch.zeros(*shape[:-2], shape[-1] ** 2, dtype=torch.bool, device=found.device)
    return whole.index_copy_(-1, mask, found).view(shape)


def _partitioned(values: Tensor, below: int) -> tuple[Tensor, Tensor]:
    """The values at places `below` and `below + 1` in order: numpy's partition takes a tenth of torch's time here."""
    parted = np.partition(values.numpy(), below, axis=-1)
    low, above = parted[..., below], parted[..., below + 1 :]
    high = above.min(-1) if above.shape[-1] else low
    return torch.as_tensor(np.asarray(low)), torch.as_tensor(np.asarray(high))


def _selected(values: Tensor, below: int) -> tuple[Tensor, Tensor]:
    """The same, on any device."""
    low = values.kthvalue(below + 1, -1).values
    return low, values.kthvalue(min(below + 2, values.shape[-1]), -1).values
